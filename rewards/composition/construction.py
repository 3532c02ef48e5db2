"""Parts of expressions that need the cards to be complete: the standard score and the gate."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from fk_reward.rewards.composition.expression import (
    COMPARISONS,
    Cards,
    Expression,
    Extreme,
    Gate,
    Standardized,
    WeightedSum,
)

logger = logging.getLogger(__name__)


def make_number(value: float) -> WeightedSum:
    """A number as an expression.

    Raises:
        ValueError: when it is not finite.

    Example:
        >>> print(make_number(0.5))
        0.5
    """
    if not math.isfinite(value):
        raise ValueError(f"Weights and numbers must be finite, got {value}.")
    return WeightedSum((), float(value))


def make_extreme(kind: str, operands: Sequence[Expression]) -> Extreme:
    """The smallest or largest of at least two expressions.

    Raises:
        ValueError: for fewer.

    Example:
        >>> from fk_reward.rewards.composition.expression import Part
        >>> print(make_extreme("min", [Part("a"), make_number(1.0)]))
        min(a, 1)
    """
    if len(operands) < 2:
        raise ValueError(f"{kind} takes at least two rewards or numbers, got {len(operands)}.")
    return Extreme(kind, tuple(operands))


def make_standardized(
    operand: Expression, cards: Cards, *, mean: float | None = None, spread: float | None = None
) -> Standardized:
    """Standardise an expression: (operand - mean) / spread.

    Args:
        operand: what to standardise.
        cards: cards of its parts.
        mean: in the unit of the operand; None for the middle of its typical range.
        spread: standard deviation in the unit of the operand; None for that on the card.

    Raises:
        ValueError: when mean or spread are not given and do not follow from the cards, or are no such numbers.

    Example:
        >>> from fk_reward.rewards.base import RewardCard
        >>> from fk_reward.rewards.composition.expression import Part
        >>> cards = {"a": RewardCard(name="a", summary="...", typical_range=(0, 1), spread=0.25)}
        >>> print(make_standardized(Part("a"), cards))
        z(a, mean=0.5, spread=0.25)
    """
    if spread is None:
        known = operand.spread(cards)
        if known is None:
            raise ValueError(f"The spread of {operand} is not known: give it, z({operand}, spread=...).")
        spread = _rounded(known)
    if mean is None:
        mean = _rounded(sum(operand.typical_range(cards)) / 2)
        if not math.isfinite(mean):
            raise ValueError(
                f"The typical range of {operand} is not known, and so no mean: give one, z({operand}, mean=...). "
                "In a sum any mean steers alike."
            )
    if not (0 < spread < math.inf and math.isfinite(mean)):
        raise ValueError(f"z needs a finite mean and a positive, finite spread, got mean={mean}, spread={spread}.")
    return Standardized(operand, float(mean), float(spread))


def make_gate(
    passed: Expression,
    condition: tuple[Expression, str, Expression],
    cards: Cards,
    *,
    failed: Expression | None = None,
) -> Gate:
    """Let a condition choose between two expressions.

    Args:
        passed: the value where the condition holds.
        condition: left side, a key of `COMPARISONS`, right side.
        cards: cards of the parts.
        failed: the value elsewhere; None for the low end of the typical range of `passed`, which is logged.

    Raises:
        ValueError: when `failed` is not given and the typical range is not known.

    Example:
        >>> from fk_reward.rewards.base import RewardCard
        >>> from fk_reward.rewards.composition.expression import Part
        >>> cards = {name: RewardCard(name=name, summary="...", typical_range=(-2, 2)) for name in ("a", "safety")}
        >>> print(make_gate(Part("a"), (Part("safety"), ">", make_number(0)), cards))
        a if safety > 0 else -2
    """
    left, comparison, right = condition
    if comparison not in COMPARISONS:
        raise ValueError(f"Expected a comparison of {', '.join(COMPARISONS)}, got {comparison!r}.")
    if failed is None:
        low, _ = passed.typical_range(cards)
        if not math.isfinite(low):
            raise ValueError(
                f"What is the value where the condition fails? The typical range of {passed} is not known: write else "
                "and a number below its usual scores. It must be finite, or no particle might be left."
            )
        failed = make_number(_rounded(low))
        logger.warning(
            "Images for which %s %s %s fails get %s, the low end of the typical range of %s; write else for another.",
            *(left, comparison, right, failed, passed),
        )
    return Gate(passed, left, comparison, right, failed)


def _rounded(value: float) -> float:
    """Without the last digits, so that 100 times a spread of 0.07 reads 7 in names."""
    return float(f"{value:.12g}")
