"""Compositions of rewards, from a text or from objects: weighted sums, minima, maxima, gates, standard scores."""

from __future__ import annotations

from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.composition.errors import ExpressionError
from fk_reward.rewards.composition.functions import gate, maximum, minimum, standardize

__all__ = [
    "CompositeReward",
    "ExpressionError",
    "gate",
    "maximum",
    "minimum",
    "standardize",
]
