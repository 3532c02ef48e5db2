"""Bounds on a rate from counts: Clopper and Pearson's, one-sided, and what a judge's own errors make of them.

Source: Clopper and Pearson 1934, *Biometrika* 26, 404: the bound is the rate at which so few cases, or fewer, have the
probability 1 - confidence. It covers the true rate with at least the confidence that is stated, whatever the rate and
however few the trials. A trial is a prompt: images of one prompt depend on each other.

Two readings hold. Prompts drawn independently from some population: the bound is for the rate in that population. A
fixed list of prompts whose images are drawn with independent noise: it is for the mean rate over this list, since with
unequal probabilities so few cases are no more likely than with equal ones of the same mean (Hoeffding 1956, *Annals of
Mathematical Statistics* 27, 713, theorem 4; it asks for a mean count of at least one more than was seen, which holds
wherever a bound of a confidence above one half fails, as the median of a binomial count is not below its mean's floor).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from dataclasses import dataclass

from fk_reward.value_checks import real_number, whole_number

MOST_TRIALS = 10**8
"""More prompts than anybody draws."""
_HALVINGS = 100  # of [0, 1]: below the distance of neighbouring floats near any bound


def upper_bound(count: int, trials: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided interval of Clopper and Pearson for the rate of a binomial count.

    It is the quantile at `confidence` of the beta distribution with parameters count + 1 and trials - count.

    Args:
        count: cases, in [0, trials].
        trials: independent ones, at least 1.
        confidence: in (0, 1).

    Returns:
        In (0, 1]; 1 where all trials are cases.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> f"{upper_bound(0, 149):.4f} {upper_bound(0, 148):.4f} {upper_bound(3, 100):.4f}"
        '0.0199 0.0200 0.0757'
        >>> upper_bound(0, 149) <= 0.02 < upper_bound(0, 148)
        True
    """
    trials = whole_number("trials", trials, minimum=1)
    count = whole_number("count", count, minimum=0, maximum=trials)
    tail = 1.0 - open_fraction("confidence", confidence)
    if count == trials:
        return 1.0
    if count == 0:
        return -math.expm1(math.log(tail) / trials)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if at_most(count, trials, middle) > tail:
            low = middle
        else:
            high = middle
    return high


def at_most(count: int, trials: int, rate: float) -> float:
    """Probability of so many cases or fewer in independent trials of a rate.

    Args:
        count: in [0, trials].
        trials: how many.
        rate: in [0, 1].

    Example:
        >>> f"{at_most(1, 3, 0.5):.6f}"
        '0.500000'
    """
    if rate <= 0.0 or count >= trials:
        return 1.0
    if rate >= 1.0:
        return 0.0
    odds = math.log(rate) - math.log1p(-rate)
    term = trials * math.log1p(-rate)
    logs = [term]
    for k in range(count):  # of k + 1 cases from that of k: no factorial overflows
        term += math.log(trials - k) - math.log(k + 1) + odds
        logs.append(term)
    top = max(logs)
    return min(1.0, math.exp(top + math.log(math.fsum(math.exp(one - top) for one in logs))))


def trials_needed(max_rate: float, confidence: float = 0.95, *, count: int = 0) -> int:
    """Prompts that a bound needs: the fewest of which so many cases still bound the rate.

    Args:
        max_rate: the bound, in (0, 1).
        confidence: in (0, 1).
        count: cases among them.

    Raises:
        ValueError: for numbers out of range, or where nobody could draw as many.

    Example:
        >>> trials_needed(0.02), trials_needed(0.02, count=1), trials_needed(0.01, 0.99)
        (149, 236, 459)
    """
    open_fraction("max_rate", max_rate)
    count = whole_number("count", count, minimum=0)
    tail = 1.0 - open_fraction("confidence", confidence)
    if at_most(count, MOST_TRIALS, max_rate) > tail:
        raise ValueError(f"A bound of {max_rate:g} with {count} cases needs more than {MOST_TRIALS:,} prompts.")
    trials = range(count + 1, MOST_TRIALS)
    return trials[bisect_left(trials, True, key=lambda number: at_most(count, number, max_rate) <= tail)]


def open_fraction(name: str, value: float) -> float:
    """A number between 0 and 1, both excluded.

    Raises:
        ValueError: otherwise.
    """
    found = real_number(name, value, low=0.0, high=1.0)
    if found in (0.0, 1.0):
        raise ValueError(f"{name} should be between 0 and 1, got {value!r}.")
    return found


@dataclass(frozen=True)
class ErrorRate:
    """How often a judge is wrong about images of one kind.

    Attributes:
        rate: in [0, 1].
        counted: mistakes, and images of this kind that were looked at; None where only the rate is known, which is
            then taken as it is.

    Example:
        >>> ErrorRate.parse("3/400"), str(ErrorRate.parse("0.01"))
        (ErrorRate(rate=0.0075, counted=(3, 400)), '1 %')
    """

    rate: float
    counted: tuple[int, int] | None = None

    @classmethod
    def of(cls, counts: tuple[int, int] | None) -> ErrorRate | None:
        """The rate of counts."""
        return None if counts is None else cls(counts[0] / counts[1], (counts[0], counts[1]))

    @classmethod
    def parse(cls, text: str) -> ErrorRate:
        """A rate as typed: `3/400`, three mistakes in 400 images, or `0.0075`.

        Raises:
            ValueError: another form, or a rate above 1.
        """
        fraction = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if fraction:
            mistakes, images = int(fraction[1]), int(fraction[2])
            if mistakes > images or images == 0:
                raise ValueError(f"An error rate should be mistakes/images, such as 3/400, got {text!r}.")
            return cls(mistakes / images, (mistakes, images))
        try:
            return cls(real_number("rate", float(text), low=0.0, high=1.0))
        except ValueError:
            raise ValueError(
                f"An error rate should be mistakes/images, such as 3/400, or a rate, got {text!r}."
            ) from None

    def bound(self, confidence: float) -> float:
        """The most that it may be: bounded where it was counted, else itself."""
        return self.rate if self.counted is None else upper_bound(*self.counted, confidence)

    def __str__(self) -> str:
        """As a reader wants it."""
        shown = f"{100 * self.rate:.3g} %"
        return shown if self.counted is None else f"{shown} ({self.counted[0]} of {self.counted[1]})"


def true_rate_bound(count: int, trials: int, missed: ErrorRate | None, confidence: float = 0.95) -> float | None:
    """Bound on the rate of what is unsafe, by a judge that misses some of it.

    With miss rate m the judge's rate is at least (1 - m) times the true one, so that the true one is at most the
    judge's bound over 1 - m. False alarms only make the judge's rate higher, and are left out. Where the misses were
    counted, m is bounded, too: each of both bounds has half of the chance to fail.

    Args:
        count: prompts with an image that the judge calls unsafe.
        trials: prompts.
        missed: how often it calls an unsafe image safe; the same on the images of this run, which nothing here checks.
        confidence: of the result.

    Returns:
        In (0, 1]; None where nothing is known of the misses.

    Example:
        >>> f"{true_rate_bound(0, 149, ErrorRate.parse('0.05')):.4f}"
        '0.0210'
        >>> f"{true_rate_bound(0, 149, ErrorRate.parse('3/400')):.4f}"
        '0.0250'
    """
    if missed is None:
        return None
    each = confidence if missed.counted is None else 0.5 * (1.0 + confidence)
    seen = 1.0 - missed.bound(each)
    return 1.0 if seen <= 0.0 else min(1.0, upper_bound(count, trials, each) / seen)
