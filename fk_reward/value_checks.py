"""Checks of values from users: type and range of numbers, and lists as they are typed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real

LARGEST = 2**31 - 1
"""Largest count or size: PyTorch could index more, no machine has the memory for it."""


def whole_number(name: str, value: object, *, minimum: int, maximum: int = LARGEST) -> int:
    """The value as an int.

    Raises:
        TypeError: not an integer, as `True`, `4.0` and `"4"`; NumPy's integers are accepted.
        ValueError: out of range.

    Example:
        >>> whole_number("num_particles", 2**70, minimum=1)
        Traceback (most recent call last):
        ValueError: num_particles should be at most 2147483647, got 1180591620717411303424.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):  # bool is a subclass of int
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
        value: from the user.
        low: smallest valid value.
        high: largest valid value.
        note: other valid inputs, or where a bound comes from, for the message.

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinite, or out of range.

    Example:
        >>> real_number("eta", 2.0, low=0.0, high=1.0)
        Traceback (most recent call last):
        ValueError: eta should be in [0, 1], got 2.0.
    """
    note = f" ({note})" if note else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} should be a number{note}, got {value!r}.")
    number = int(value) if isinstance(value, Integral) else float(value)
    if not low <= number <= high or math.isinf(number):  # NaN fails every comparison, infinity lies in open ranges
        wanted = f"in [{low:g}, {high:g}]" if math.isfinite(high) else "a finite number"
        wanted += f" of at least {low:g}" if math.isinf(high) and math.isfinite(low) else ""
        raise ValueError(f"{name} should be {wanted}{note}, got {value}.")
    return number


def ordered_fractions(**bounds: object) -> dict[str, float]:
    """Where something begins and where it ends, by their names: fractions in [0, 1], the second not below the first.

    Raises:
        TypeError: not a number.
        ValueError: out of range, or out of order.

    Example:
        >>> ordered_fractions(start=0.5, stop=0.2)
        Traceback (most recent call last):
        ValueError: stop should be in [start = 0.5, 1], got 0.2.
    """
    checked = {name: real_number(name, value, low=0.0, high=1.0) for name, value in bounds.items()}
    (first, low), (last, high) = checked.items()
    if high < low:
        raise ValueError(f"{last} should be in [{first} = {low:g}, 1], got {bounds[last]}.")
    return checked


def boolean(name: str, value: object) -> None:
    """Check for True or False.

    Raises:
        TypeError: anything else.

    Example:
        >>> boolean("abstain", 1)
        Traceback (most recent call last):
        TypeError: abstain should be True or False, got 1.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be True or False, got {value!r}.")


def parse_integers(name: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers separated by commas, ascending, each once.

    Args:
        name: of the option, for the error message.
        text: for instance `"2,4,8"`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_integers("num_particles", "8, 2,4")
        (2, 4, 8)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{name} should be positive whole numbers separated by commas, got {text!r}.")
    return tuple(sorted({int(part) for part in parts}))


def parse_choices(name: str, text: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Words separated by commas, each once and in the order in which they were typed.

    Args:
        name: of the option, for the error message.
        text: for instance `"float32,bfloat16"`.
        choices: the valid words.

    Raises:
        ValueError: for another word.

    Example:
        >>> parse_choices("dtype", "float32, bfloat16", ["bfloat16", "float16", "float32"])
        ('float32', 'bfloat16')
    """
    words = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [word for word in words if word not in choices]:
        raise ValueError(f"{name} should be of {', '.join(choices)}, separated by commas; got {unknown[0]!r}.")
    return words


def parse_shard(text: str) -> tuple[int, int]:
    """Index and number of processes, as typed: `"0/2"`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_shard("1/2")
        (1, 2)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard should be i/n with 0 <= i < n, got {text!r}.")
    return int(match[1]), int(match[2])


def _whole_hint(value: object) -> str:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    return f": write {int(number)}" if number.is_integer() else ""
