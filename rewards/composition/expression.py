"""Expressions over the scores of named rewards: what they compute, what follows from the cards, how they are written.

`str` of an expression is its canonical text, which reads back as the same expression.
"""

# ruff: noqa: D102 (what each kind of expression overrides is documented in `Expression`)
from __future__ import annotations

import abc
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import torch

from fk_reward.rewards.base import RewardCard

if TYPE_CHECKING:
    from torch import Tensor

Cards: TypeAlias = Mapping[str, RewardCard]
Range: TypeAlias = tuple[float, float]

COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
EXTREMES: dict[str, tuple[str, Callable[[Iterable[float]], float]]] = {"min": ("minimum", min), "max": ("maximum", max)}
"""Kind -> of tensors, by its name in torch; and of numbers."""


class Expression(abc.ABC):
    """A number for each image, computed from the scores of named rewards. Immutable, compared by value."""

    @abc.abstractmethod
    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Compute (B,) from the scores (B,) of all parts."""

    @abc.abstractmethod
    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        """Each occurrence of a part with the sign with which it enters the value: 1, -1, or 0 in a condition."""

    @abc.abstractmethod
    def typical_range(self, cards: Cards) -> Range:
        """Bounds that follow from the parts' typical ranges by interval arithmetic."""

    @abc.abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Expression:
        """The same expression over parts of other names."""

    def spread(self, cards: Cards) -> float | None:
        """Standard deviation among images of one prompt; None where it depends on how parts vary together."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.signed_parts()))


@dataclass(frozen=True)
class Part(Expression):
    """The score of one reward."""

    name: str

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        return scores[self.name]

    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        yield self.name, sign

    def typical_range(self, cards: Cards) -> Range:
        return cards[self.name].typical_range

    def renamed(self, names: Mapping[str, str]) -> Part:
        return Part(names[self.name])

    def spread(self, cards: Cards) -> float | None:
        return cards[self.name].spread

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class WeightedSum(Expression):
    """constant + w_1 e_1 + w_2 e_2 + ...; `weighted_sum` makes it in its simplest form. Without terms, a number."""

    terms: tuple[tuple[float, Expression], ...]
    constant: float = 0.0

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        if not self.terms:
            return torch.full_like(next(iter(scores.values())), self.constant)
        total = reduce(operator.add, (_weighted(weight, term.evaluate(scores)) for weight, term in self.terms))
        return total + self.constant if self.constant else total

    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        for weight, term in self.terms:
            yield from term.signed_parts(sign * ((weight > 0) - (weight < 0)))

    def typical_range(self, cards: Cards) -> Range:
        low = high = self.constant
        for weight, term in self.terms:
            ends = [weight * end if weight else 0.0 for end in term.typical_range(cards)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def renamed(self, names: Mapping[str, str]) -> Expression:
        """Terms that become equal are joined."""
        return weighted_sum([(weight, term.renamed(names)) for weight, term in self.terms], self.constant)

    def spread(self, cards: Cards) -> float | None:
        """Known for one term only: of several it depends on how they vary together."""
        if len(self.terms) != 1 or not self.terms[0][0]:
            return None
        (weight, term), *_ = self.terms
        spread = term.spread(cards)
        return None if spread is None else abs(weight) * spread

    def __str__(self) -> str:
        signed = [(weight < 0, _product(abs(weight), term)) for weight, term in self.terms]
        if self.constant or not self.terms:
            signed.append((self.constant < 0, number_text(abs(self.constant))))
        (negative, first), *rest = signed
        return ("-" if negative else "") + first + "".join(f" {'-' if minus else '+'} {text}" for minus, text in rest)


@dataclass(frozen=True)
class Extreme(Expression):
    """The smallest or largest of several expressions; `kind` is a key of `EXTREMES`."""

    kind: str
    operands: tuple[Expression, ...]

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        return reduce(getattr(torch, EXTREMES[self.kind][0]), (operand.evaluate(scores) for operand in self.operands))

    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        for operand in self.operands:
            yield from operand.signed_parts(sign)

    def typical_range(self, cards: Cards) -> Range:
        lows, highs = zip(*(operand.typical_range(cards) for operand in self.operands), strict=True)
        extreme = EXTREMES[self.kind][1]
        return extreme(lows), extreme(highs)

    def renamed(self, names: Mapping[str, str]) -> Extreme:
        return Extreme(self.kind, tuple(operand.renamed(names) for operand in self.operands))

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.operands))})"


@dataclass(frozen=True)
class Standardized(Expression):
    """(operand - mean) / spread, both in the unit of the operand."""

    operand: Expression
    mean: float
    scale: float

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        return (self.operand.evaluate(scores) - self.mean) / self.scale

    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        return self.operand.signed_parts(sign)

    def typical_range(self, cards: Cards) -> Range:
        low, high = self.operand.typical_range(cards)
        return (low - self.mean) / self.scale, (high - self.mean) / self.scale

    def renamed(self, names: Mapping[str, str]) -> Standardized:
        return Standardized(self.operand.renamed(names), self.mean, self.scale)

    def spread(self, cards: Cards) -> float | None:
        """1: that is what standardising is for."""
        return 1.0

    def __str__(self) -> str:
        return f"z({self.operand}, mean={number_text(self.mean)}, spread={number_text(self.scale)})"


@dataclass(frozen=True)
class Gate(Expression):
    """`passed` where `left` compares to `right` as a key of `COMPARISONS` says, else `failed`."""

    passed: Expression
    left: Expression
    comparison: str
    right: Expression
    failed: Expression

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        condition = COMPARISONS[self.comparison](self.left.evaluate(scores), self.right.evaluate(scores))
        return torch.where(condition, self.passed.evaluate(scores), self.failed.evaluate(scores))

    def signed_parts(self, sign: int = 1) -> Iterator[tuple[str, int]]:
        for operand, its_sign in ((self.passed, sign), (self.left, 0), (self.right, 0), (self.failed, sign)):
            yield from operand.signed_parts(its_sign)

    def typical_range(self, cards: Cards) -> Range:
        lows, highs = zip(self.passed.typical_range(cards), self.failed.typical_range(cards), strict=True)
        return min(lows), max(highs)

    def renamed(self, names: Mapping[str, str]) -> Gate:
        passed, left, right, failed = (e.renamed(names) for e in (self.passed, self.left, self.right, self.failed))
        return Gate(passed, left, self.comparison, right, failed)

    def __str__(self) -> str:
        passed, left, right = map(_in_brackets, (self.passed, self.left, self.right))
        return f"{passed} if {left} {self.comparison} {right} else {self.failed}"


def weighted_sum(terms: Iterable[tuple[float, Expression]], constant: float = 0.0) -> Expression:
    """Add up weighted expressions: sums within are dissolved, equal terms joined, and 1 e becomes e.

    Terms of weight 0 stay, so that a reward can be watched without steering.

    Raises:
        ValueError: when a weight is not finite.

    Example:
        >>> a, b = Part("a"), Part("b")
        >>> print(weighted_sum([(0.5, weighted_sum([(1.0, a), (-4.0, b)], 2.0)), (1.0, a)]))
        1.5*a - 2*b + 1
        >>> weighted_sum([(0.5, a), (0.5, a)])
        Part(name='a')
    """
    weights: dict[Expression, float] = {}
    for factor, expression in terms:
        inner = expression if isinstance(expression, WeightedSum) else WeightedSum(((1.0, expression),))
        constant += factor * inner.constant
        for weight, term in inner.terms:
            weights[term] = weights.get(term, 0.0) + factor * weight
    for weight in (*weights.values(), constant):
        if not math.isfinite(weight):
            raise ValueError(f"Weights and numbers must be finite, got {weight}.")
    if constant == 0 and list(weights.values()) == [1.0]:
        return next(iter(weights))
    return WeightedSum(tuple((weight, term) for term, weight in weights.items()), constant)


def number_text(value: float) -> str:
    """The shortest text that reads back as the number.

    Example:
        >>> number_text(2.0), number_text(0.1), number_text(1e-7)
        ('2', '0.1', '1e-07')
    """
    return repr(float(value)).removesuffix(".0")


def _weighted(weight: float, scores: Tensor) -> Tensor:
    """Weight 0 is for watching a part: nothing that it gives counts, though 0 * -inf would be NaN."""
    return weight * scores if weight else 0.0 * scores.nan_to_num(neginf=0.0)


def _product(weight: float, term: Expression) -> str:
    text = _in_brackets(term)
    return text if weight == 1 else f"{number_text(weight)}*{text}"


def _in_brackets(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, Gate) else str(expression)


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
        ValueError: when mean or spread are neither given nor known from the cards, or are not finite (positive).

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
                f"The typical range of {operand} is not known, so there is no default mean: give one, "
                f"z({operand}, mean=...). In a sum, any mean steers in the same way."
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
                f"The typical range of {passed} is not known, so there is no default value where the condition fails: "
                "write else and a number below its usual scores. It must be finite, or no particle might be left."
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
