"""The sampling loop of Diffusers, steered: predictions, transitions, row state and the trace."""
