"""Timing in turn: seconds of one run, median and quartiles of several.

`torch.utils.benchmark.Timer` warms up with two runs for each measurement, which would triple the cost of calls that
take seconds and are timed one by one in turn; only its clock is used, which waits for the accelerator.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from torch.utils.benchmark import timer


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


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one run, the accelerator's queue emptied before and after it.

    Example:
        >>> seconds_of(lambda: None) < 1.0
        True
    """
    started = timer()
    run()
    return timer() - started
