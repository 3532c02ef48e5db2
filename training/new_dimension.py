"""A new dimension, as it is before the first step of training."""

from __future__ import annotations

import torch
from peft import LoraConfig

from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel


def new_dimension(
    network: LlavaRewardModel,
    config: LlavaRewardConfig,
    *,
    lora_rank: int = 128,
    lora_alpha: float = 256,
    lora_dropout: float = 0.05,
    seed: int = 0,
) -> str:
    """Attach an untrained dimension: LoRA that changes nothing yet, the backbone's own projector, a random head.

    LoRA adapts all linear layers of the language model, and only of it. Its first matrix is Gaussian, its second zero,
    as in the official code.

    Args:
        network: what to attach it to.
        config: what the dimension is; its name becomes the key, so it must be free.
        lora_rank: r; 0 for no LoRA.
        lora_alpha: scale of LoRA, divided by r.
        lora_dropout: share of LoRA's inputs that is dropped in training.
        seed: of LoRA and the head; the global generator is left as it was.

    Returns:
        The key in `network`.

    Raises:
        ValueError: when the dimension is there already, or belongs to another backbone.
    """
    lora_config = (
        LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            init_lora_weights="gaussian",
            target_modules=list(network.adapters.linear_modules),
        )
        if lora_rank
        else None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.attach(config.dimension, RewardCheckpoint(config, lora_config, lora={}, projector={}, head={}))
    return config.dimension
