"""Values of data rows as plain Python: numbers, truth values and texts, whatever library made the row.

Rows come from JSON, from Parquet, from pandas and from `datasets` with a format of NumPy or PyTorch, and so a rating is
an int, a `numpy.float32`, a `decimal.Decimal` or a tensor of no dimensions. All of these are numbers; a bool and a
string are none.
"""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np


def plain_value(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as Python's own; anything else as it is.

    Example:
        >>> plain_value(np.float32(0.5)), plain_value(np.str_("a")), plain_value(np.array(True)), plain_value([1])
        (0.5, 'a', True, [1])
    """
    if isinstance(value, np.generic) or (getattr(value, "shape", None) == () and hasattr(value, "item")):
        return value.item()
    return value


def finite_number(value: Any, name: str) -> float:
    """A finite number of any library.

    Args:
        value: int, float, `decimal.Decimal`, or a scalar of NumPy or PyTorch.
        name: for the message.

    Raises:
        TypeError: for anything else, bools and strings too.
        ValueError: for NaN and infinities, which is how pandas writes what is missing.

    Example:
        >>> finite_number(np.int64(5), "rating")
        5.0
        >>> finite_number(float("nan"), "rating")
        Traceback (most recent call last):
        ValueError: rating must be finite, got nan
    """
    number = plain_value(value)
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, (Real, Decimal)):
        raise TypeError(f"{name} must be a number, got {short(number)}")
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {short(number)}")
    return found


def truth_value(value: Any, name: str) -> bool:
    """A truth value of any library: a bool, or the numbers 0 and 1.

    Raises:
        ValueError: for anything else.

    Example:
        >>> truth_value(np.int8(1), "label"), truth_value(False, "label"), truth_value(1.0, "label")
        (True, False, True)
    """
    found = plain_value(value)
    if not isinstance(found, (bool, Real, Decimal)) or found not in (0, 1):
        raise ValueError(f"{name} must be 0 or 1, got {short(found)}")
    return bool(found)


def is_missing(value: Any) -> bool:
    """Whether a row has nothing there: None, or the NaN that pandas puts in its place.

    Example:
        >>> is_missing(None), is_missing(np.float64("nan")), is_missing(""), is_missing(0)
        (True, True, False, False)
    """
    found = plain_value(value)
    return found is None or (isinstance(found, float) and math.isnan(found))


def short(value: Any) -> str:
    """The value as a message shows it: at most 80 letters, and its type alone where it cannot be written out."""
    try:
        text = repr(value)
    except RecursionError:
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
