"""Numbers that a person gave: their kind and range, and plain Python numbers in place of NumPy's."""

from __future__ import annotations

import math
from numbers import Integral, Real

LARGEST = 2**31 - 1
"""Of counts and sizes; PyTorch's indices of one dimension go further, no machine's memory does."""


def whole_number(name: str, value: object, *, minimum: int, maximum: int = LARGEST) -> int:
    """The value as an int.

    Raises:
        TypeError: for what is no whole number: `True`, `4.0` and `"4"` are none; NumPy's integers are.
        ValueError: for one outside the range.

    Example:
        >>> whole_number("num_particles", 2**70, minimum=1)
        Traceback (most recent call last):
        ValueError: num_particles should be at most 2147483647, got 1180591620717411303424.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} should be an int, got {value!r}{_whole_hint(value)}.")
    number = int(value)
    if number < minimum:
        raise ValueError(f"{name} should be at least {minimum}, got {number}.")
    if number > maximum:
        raise ValueError(f"{name} should be at most {maximum}, got {number}.")
    return number


def real_number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf, note: str = "") -> float:
    """The value as a finite float in [low, high]; an int stays one.

    Args:
        name: what the message calls it.
        value: of a person.
        low: smallest value that is allowed.
        high: largest value that is allowed.
        note: what else could have been given, or where a bound comes from, for the message.

    Raises:
        TypeError: for what is no number.
        ValueError: for NaN, an infinite number, or one outside the range.

    Example:
        >>> real_number("eta", 2.0, low=0.0, high=1.0)
        Traceback (most recent call last):
        ValueError: eta should be in [0, 1], got 2.0.
    """
    note = f" ({note})" if note else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} should be a number{note}, got {value!r}.")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not low <= number <= high or math.isinf(number):
        wanted = f"in [{low:g}, {high:g}]" if math.isfinite(high) else "a finite number"
        wanted += f" of at least {low:g}" if math.isinf(high) and math.isfinite(low) else ""
        raise ValueError(f"{name} should be {wanted}{note}, got {value}.")
    return number


def _whole_hint(value: object) -> str:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    return f": write {int(number)}" if number.is_integer() else ""
