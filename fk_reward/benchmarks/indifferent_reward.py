"""A reward without a preference, for pictures that no reward steers."""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.rewards import CallableReward


def indifferent_reward() -> CallableReward:
    """A reward that finds all pictures equal.

    Example:
        >>> indifferent_reward()(torch.rand(2, 3, 8, 8), "anything")
        tensor([0., 0.])
    """
    return CallableReward(_zeros, "none")


def _zeros(images: Tensor, prompts: list[str]) -> Tensor:  # noqa: ARG001 (the signature of all rewards)
    return torch.zeros(len(images), device=images.device)
