"""Compositions of rewards, from a text or from objects: weighted sums, minima, maxima, gates, standard scores."""

from __future__ import annotations

from fk_reward.rewards.composition.composite import CompositeReward, gate, maximum, minimum, standardize
from fk_reward.rewards.composition.parser import ExpressionError

__all__ = [
    "CompositeReward",
    "ExpressionError",
    "gate",
    "maximum",
    "minimum",
    "standardize",
]
