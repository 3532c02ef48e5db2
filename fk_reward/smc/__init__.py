"""Sequential Monte Carlo: potentials, weights, resampling and the particle filter. Knows torch only, no images."""
