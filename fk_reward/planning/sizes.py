"""Amounts of memory as a person writes and reads them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def parse_memory(amount: int | str | None) -> int | None:
    """Bytes of an amount.

    Args:
        amount: bytes, or a number with MB, GB (10⁹ bytes), MiB or GiB (2³⁰ bytes); None for no limit.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_memory("24GB"), parse_memory("0.5 GiB"), parse_memory(None)
        (24000000000, 536870912, None)
    """
    if amount is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(amount))
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else 0
    if match and not match[2] and isinstance(amount, str) and 0 < size < 2**20:
        number = match[1]
        raise ValueError(f"memory {number} has no unit, and would be {number} bytes: write {number}GiB or {number}GB.")
    if size <= 0:
        raise ValueError(f"memory should be an amount such as 24GB, 24GiB or a number of bytes, got {amount!r}.")
    return size


def gigabytes(size: int) -> str:
    """Bytes in 10⁹, for people.

    Example:
        >>> gigabytes(24_510_000_000), gigabytes(1_200_000)
        ('24.5 GB', '0.0012 GB')
    """
    number = size / 1e9
    return f"{number:.1f} GB" if number >= 10 else f"{number:.2g} GB" if number < 1 else f"{number:.2f} GB"
