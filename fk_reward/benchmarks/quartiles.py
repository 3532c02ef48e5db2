"""Median and quartiles of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(key: str, values: Sequence[float]) -> dict[str, float]:
    """Entries of a row: the median by its key, the lower and the upper quartile by the key with `_low` and `_high`.

    Args:
        key: of the row.
        values: at least two.

    Example:
        >>> quartiles("seconds", [1.0, 2.0, 3.0, 4.0, 5.0])
        {'seconds': 3.0, 'seconds_low': 2.0, 'seconds_high': 4.0}
    """
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {key: median, f"{key}_low": low, f"{key}_high": high}
