"""Multimodal LLMs that LLaVA-Reward can stand on, one file each; `base` has what they share and the table."""
