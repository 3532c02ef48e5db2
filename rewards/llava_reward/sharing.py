"""One backbone in memory for all rewards that read it, and one copy of each adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch

from fk_reward.rewards.hub_paths import file_state
from fk_reward.rewards.llava_reward.backbones.base import load_backbone
from fk_reward.rewards.llava_reward.model import LlavaRewardModel

_MODELS: WeakValueDictionary[tuple[str, ...], LlavaRewardModel] = WeakValueDictionary()


def shared_model(
    path: str | os.PathLike[str], *, torch_dtype: torch.dtype, offload: bool, settings: Mapping[str, Any]
) -> LlavaRewardModel:
    """Load a backbone, or return the one in use by another reward that asked for the same thing.

    A model lives as long as a reward holds it. Rewards that share one move together; where one of them was moved to
    another dtype, the model is not shared any more.

    Args:
        path: name of an embedded model, hub id or folder.
        torch_dtype: floating dtype of the weights.
        offload: whether the weights rest on the CPU between calls; such rewards share only among themselves.
        settings: the other keyword arguments of `load_backbone`.
    """
    key = (file_state(path), str((torch_dtype, offload)), *(f"{name}={settings[name]!r}" for name in sorted(settings)))
    model = _MODELS.get(key)
    if model is None or model.backbone.dtype != torch_dtype:
        model = LlavaRewardModel(load_backbone(path, torch_dtype=torch_dtype, **settings))
        _MODELS[key] = model
    return model
