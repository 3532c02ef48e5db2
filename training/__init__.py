"""Training of LLaVA-Reward: losses, preference data and the trainer."""
