"""Rewards in the signatures of trainers that fine-tune by reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fk_reward.rewards.inputs import Images

PlainReward = Callable[[Images, Sequence[str]], Tensor]
"""Images and prompts to (B,) scores: a `Reward`, a `RewardWorkers`, or any function."""


@dataclass(frozen=True)
class DDPOReward:
    """A reward as DDPO's code and TRL's former DDPO trainer call it: `(images, prompts, metadata) -> (scores, {})`.

    Args:
        reward: any reward.

    Example:
        >>> fn = DDPOReward(lambda images, prompts: images.mean(dim=(1, 2, 3)))
        >>> fn(torch.ones(2, 3, 4, 4), ("a", "b"), ({}, {}))
        (tensor([1., 1.]), {})
    """

    reward: PlainReward

    def __call__(self, images: Images, prompts: Sequence[str], metadata: Any = None) -> tuple[Tensor, dict[str, Any]]:  # noqa: ARG002 (of the trainer)
        """Score images (B, 3, H, W) in [0, 1]; the metadata play no part."""
        return _scored(self.reward, images, prompts), {}


@dataclass(frozen=True)
class FlowGRPOReward:
    """Rewards as flow_grpo's trainers call them, in place of its `multi_score`.

    `(images, prompts, metadata, only_strict=...) -> ({name: scores, ..., "avg": weighted sum}, {})`: the trainer
    maximises "avg" and logs the others.

    Args:
        rewards: name -> any reward.
        weights: name -> weight in "avg"; 1 for what is not named.

    Raises:
        ValueError: without a reward, for a reward that is called "avg", or a weight of no reward.

    Example:
        >>> bright = lambda images, prompts: images.mean(dim=(1, 2, 3))
        >>> fn = FlowGRPOReward({"bright": bright, "again": bright}, weights={"again": 0.5})
        >>> fn(torch.ones(1, 3, 4, 4), ["a"], [{}], only_strict=True)
        ({'bright': tensor([1.]), 'again': tensor([1.]), 'avg': tensor([1.5000])}, {})
    """

    rewards: Mapping[str, PlainReward]
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.rewards or "avg" in self.rewards:
            raise ValueError(f'Give at least one reward, none of them called "avg", got {list(self.rewards)}.')
        if foreign := sorted(set(self.weights or ()) - set(self.rewards)):
            raise ValueError(f"There are weights of no reward: {', '.join(foreign)}.")

    def __call__(
        self,
        images: Images,
        prompts: Sequence[str],
        metadata: Any = None,
        only_strict: bool = True,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Score images (B, 3, H, W) in [0, 1]; metadata and `only_strict`, of GenEval's reward, play no part."""
        scores = {name: _scored(reward, images, prompts) for name, reward in self.rewards.items()}
        weights = self.weights or {}
        parts = [weights.get(name, 1.0) * score for name, score in scores.items()]
        return {**scores, "avg": torch.stack(parts).sum(dim=0)}, {}


def _scored(reward: PlainReward, images: Images, prompts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(reward(images, list(prompts))).float()
