"""The rule-based verifier of the shapes world as a reward: an upper bound for what a learned reward can do there."""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.registry import RewardEntry
from fk_reward.shapes import verify

CARD = RewardCard(
    name="shapes-verifier",
    summary="how far an image of coloured shapes shows what its prompt says, by rules; 1 exactly if it does",
    typical_range=(0.0, 1.0),
    spread=0.16,
    spread_source="mean of 60 validation prompts with 16 finished images each: fk-reward record --suite "
    "shapes-validation --solver sde-dpmsolver++-20",
    looks_at="the whole image",
    licence="Apache-2.0",
    source="rules of GenEval (Ghosh et al. 2023, arXiv 2310.11513), fk_reward.shapes.verify",
)


class ShapesVerifierReward(Reward):
    """Graded score of `fk_reward.shapes.verify`, in [0, 1].

    Prompts must be sentences of the shapes world; any other raises `ValueError`.

    Args:
        strict: whether objects that the prompt does not name make an image wrong.

    Example:
        >>> from fk_reward.shapes import Scene, SceneObject, render
        >>> images = render([Scene((SceneObject("star", "red", x=0.5, y=0.5, size=0.2),))])
        >>> ShapesVerifierReward()(images, "a photo of a red star")
        tensor([1.])
    """

    card = CARD

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Judge each image alone."""
        verdicts = [verify(image, prompt, strict=self.strict) for image, prompt in zip(images, prompts, strict=True)]
        return torch.tensor([verdict.score for verdict in verdicts], device=images.device)


SHAPES_VERIFIER = RewardEntry(card=CARD, build=ShapesVerifierReward)
