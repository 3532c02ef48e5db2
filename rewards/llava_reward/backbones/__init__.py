"""Multimodal LLMs as backbones of LLaVA-Reward, one file each; `base` has the interface and the table."""
