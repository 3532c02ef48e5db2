"""The backbones at their real sizes without weights, to count what of them is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fk_reward.rewards.llava_reward.backbones.base import Backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.random_backbones import random_backbone
from fk_reward.training.new_dimension import new_dimension
from fk_reward.training.trainable import TrainableReward, TrainableShare, trainable_share

FULL_SIZES: dict[str, Callable[[], Backbone]] = {
    name: partial(random_backbone, name, full_size=True) for name in ("phi3_v", "qwen2_5_vl")
}
"""Backbone of the official checkpoints -> what builds it."""


def full_size_share(model_type: str, *, lora_rank: int = 128, cross_attention: bool = True) -> TrainableShare:
    """What of a backbone of LLaVA-Reward is trained, at the size of the official checkpoints.

    Nothing is downloaded and no weights are made: the model is built on the meta device. The backbone counts as it is
    used, that is without the language-model head.

    Args:
        model_type: "phi3_v" (`microsoft/Phi-3.5-vision-instruct`) or "qwen2_5_vl" (`Qwen/Qwen2.5-VL-7B-Instruct`).
        lora_rank: rank of LoRA.
        cross_attention: whether there is a SkipCA.

    Raises:
        ValueError: for another backbone.

    Example:
        >>> print(full_size_share("phi3_v"))  # doctest: +SKIP
    """
    if model_type not in FULL_SIZES:
        raise ValueError(f"Expected one of {', '.join(FULL_SIZES)}, got {model_type!r}.")
    with torch.device("meta"):
        network = LlavaRewardModel(FULL_SIZES[model_type]())
        config = LlavaRewardConfig(
            dimension="counted", backbone=model_type, base_model=model_type, cross_attention=cross_attention
        )
        key = new_dimension(network, config, lora_rank=lora_rank)
    return trainable_share(TrainableReward(network, key))
