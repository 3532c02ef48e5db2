"""Operators of rewards: `0.7 * a + 0.3 * b` is a reward."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fk_reward.rewards.base import Reward
    from fk_reward.rewards.composition import CompositeReward


class RewardArithmetic:
    """What makes rewards add up with rewards and numbers, and scale by numbers; `Reward` inherits it."""

    def __add__(self, other: Reward | float) -> CompositeReward:
        return _weighted((1.0, self), (1.0, other))

    def __radd__(self, other: float) -> CompositeReward:
        return _weighted((1.0, other), (1.0, self))

    def __sub__(self, other: Reward | float) -> CompositeReward:
        return _weighted((1.0, self), (-1.0, other))

    def __rsub__(self, other: float) -> CompositeReward:
        return _weighted((1.0, other), (-1.0, self))

    def __mul__(self, factor: float) -> CompositeReward:
        return _weighted((factor, self)) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> CompositeReward:
        return _weighted((1.0 / divisor, self)) if isinstance(divisor, Real) else NotImplemented

    def __neg__(self) -> CompositeReward:
        return _weighted((-1.0, self))


def _weighted(*terms: tuple[float, Any]) -> CompositeReward:
    """A weighted sum; NotImplemented, which Python turns into its TypeError, when a term has another type."""
    from fk_reward.rewards.composition.functions import add_weighted

    if not all(isinstance(term, Real | RewardArithmetic) for _, term in terms):
        return NotImplemented
    return add_weighted(terms)
