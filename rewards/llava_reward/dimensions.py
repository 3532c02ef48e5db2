"""Dimensions of a LLaVA-Reward in memory: each checkpoint is attached once, under a key of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fk_reward.rewards.hub_paths import file_state
from fk_reward.rewards.llava_reward.checkpoint_sources import read_checkpoint
from fk_reward.rewards.llava_reward.loading import Adapter
from fk_reward.rewards.llava_reward.model import LlavaRewardModel


def attach_adapter(
    model: LlavaRewardModel, adapter: Adapter, *, dimension: str | None, revision: str = "main"
) -> tuple[str, str]:
    """Attach a checkpoint to a model, unless it is there already; return its dimension and its key.

    Args:
        model: the network.
        adapter: folder or hub repository.
        dimension: its dimension; None for what a checkpoint in our format says.
        revision: branch, tag or commit of a hub repository.

    Raises:
        OSError: when files are missing.
        ValueError: when the checkpoint does not fit; it says in what.
    """
    source = f"{file_state(adapter)}|{dimension}|{revision}"
    if source not in model.sources:
        checkpoint = read_checkpoint(
            adapter, backbone=model.backbone.model_type, dimension=dimension, revision=revision
        )
        key = free_key(checkpoint.config.dimension, model.configs)
        model.attach(key, checkpoint)
        model.sources[source] = key
    key = model.sources[source]
    return model.configs[key].dimension, key


def free_key(dimension: str, taken: Mapping[str, Any]) -> str:
    """A key for a dimension that is not taken yet.

    Example:
        >>> free_key("safety", {"safety": ..., "safety-2": ...})
        'safety-3'
    """
    number = 1
    while (key := dimension if number == 1 else f"{dimension}-{number}") in taken:
        number += 1
    return key
