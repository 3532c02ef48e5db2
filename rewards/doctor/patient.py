"""The reward that is examined, the specimens that it is asked about, and what a probe is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fk_reward.rewards.base import Reward
from fk_reward.rewards.composition import CompositeReward
from fk_reward.rewards.doctor.findings import Finding
from fk_reward.rewards.doctor.specimens import Specimens
from fk_reward.rewards.inputs import Images

_TOLERANCES = {torch.float16: 0.1, torch.bfloat16: 0.1}  # of the scale
_TOLERANCE = 2e-3


class Patient:
    """A reward under examination.

    Args:
        reward: on the device and in the dtype in which it will be used.
        specimens: images and prompts.

    Attributes:
        reward: the reward.
        specimens: images and prompts.
    """

    def __init__(self, reward: Reward, specimens: Specimens) -> None:
        self.reward, self.specimens = reward, specimens

    def score(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Call the reward without a gradient.

        Args:
            images: B images; tensors are moved to the reward's device.
            prompts: B strings.

        Returns:
            (B,) float64 on the CPU.
        """
        if isinstance(images, Tensor):
            images = images.to(self.reward.device)
        with torch.no_grad():
            return self.reward(images, list(prompts)).double().cpu()

    @cached_property
    def matching(self) -> Tensor:
        """(N,) scores of the specimens with their own prompts."""
        return self._both(self.specimens.images.roll(-1, dims=0))[0]

    @cached_property
    def mismatched(self) -> Tensor:
        """(S, N) scores with the prompts of S other specimens; of a reward that compares, of S other images."""
        images, shifts = self.specimens.images, self.specimens.shifts
        if self.reward.compares_images:
            return torch.stack([self._both(images.roll(-shift, dims=0))[1] for shift in shifts])
        return torch.stack([self.score(images, self.specimens.swapped(shift)) for shift in shifts])

    def margins(self, others: Tensor) -> Tensor:
        """How far the specimens are ahead of other images for the same prompts, in the good direction.

        Args:
            others: (N, 3, H, W) in [0, 1].

        Returns:
            (N,), positive where the specimen wins, whether high or low scores are good ones.
        """
        ours, theirs = self._both(others)
        return self.better(ours, theirs)

    def better(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """By how much scores are better than others: positive where they win."""
        return ours - theirs if self.reward.card.higher_is_better else theirs - ours

    @cached_property
    def scale(self) -> float:
        """What counts as a difference: the card's spread, else the deviation of right and wrong prompts' scores."""
        if self.reward.card.spread is not None:
            return self.reward.card.spread
        return max(torch.cat([self.matching[None], self.mismatched]).std().item(), 1e-6)

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The networks that the reward holds; of a composition, those of its parts."""
        return [module for part in parts_of(self.reward) for module in part._held_modules()]

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights; float32 for a reward without weights."""
        weights = (weight for module in self.modules for weight in module.parameters())
        return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)

    @property
    def tolerance(self) -> float:
        """Difference of scores that rounding explains: a share of `scale` that depends on the dtype."""
        return _TOLERANCES.get(self.dtype, _TOLERANCE) * self.scale

    def is_blind_to(self, aspect: str) -> bool:
        """Whether the card says that the score does not depend on something."""
        return aspect in self.reward.card.blind_to

    def _both(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the specimens and of others in one call, for rewards that compare images of a prompt."""
        images, prompts = self.specimens.images, self.specimens.prompts
        both = self.score(torch.cat([images, others]), [*prompts, *prompts])
        return both[: len(images)], both[len(images) :]


@dataclass(frozen=True)
class Probe:
    """A question to a reward.

    Attributes:
        question: in a line, for the table and for `--help`.
        examine: finds the answer. What it raises of `RuntimeError`, `TypeError` and `ValueError` is a failure, too.

    Example:
        >>> from fk_reward.rewards.doctor import failed, passed
        >>> def examine(patient):
        ...     low = patient.matching.min()
        ...     return passed("all are positive.") if low > 0 else failed(f"{low:.3g} is not.", remedy="Add an offset.")
        >>> Probe("Are all scores positive?", examine).question
        'Are all scores positive?'
    """

    question: str
    examine: Callable[[Patient], Finding]


def parts_of(reward: Reward) -> list[Reward]:
    """Of a composition its parts, of any other reward itself."""
    return list(reward.parts.values()) if isinstance(reward, CompositeReward) else [reward]


def in_words(margins: Tensor, scale: float) -> str:
    """How many win and lose, and by how much.

    Example:
        >>> in_words(torch.tensor([1.0, 2.0, -1.0, 2.0, 0.0]), 0.5)
        '3 of 5 win and 1 lose, by 0.8 on average (1.6 spreads)'
    """
    won, lost, mean = int((margins > 0).sum()), int((margins < 0).sum()), margins.mean().item()
    return f"{won} of {margins.numel()} win and {lost} lose, by {mean:.3g} on average ({mean / scale:.1f} spreads)"


def win(margins: Tensor, tolerance: float, *, share: float = 0.0) -> bool:
    """Whether more win than lose, and at least a share of all; what rounding explains is neither.

    Example:
        >>> win(torch.tensor([1.0, 1.0, -1.0]), 0.1), win(torch.tensor([0.01, 0.01]), 0.1)
        (True, False)
    """
    won, lost = (margins > tolerance).sum(), (margins < -tolerance).sum()
    return bool(won > lost and won >= share * margins.numel())
