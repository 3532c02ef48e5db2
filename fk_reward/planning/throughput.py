"""Operations a second: given by the user, or measured on the GPU at hand; and the seconds that follow."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

_SIDE, _NUM_PRODUCTS = 8192, 20


def parse_tflops(text: str) -> dict[str, float]:
    """10¹² operations a second, one number for all dtypes or one for each.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_tflops("400"), parse_tflops("float16=400,float32=40")
        ({'': 400.0}, {'float16': 400.0, 'float32': 40.0})
    """
    try:
        pairs = [part.rpartition("=") for part in text.split(",")]
        rates = {dtype.strip(): float(number) for dtype, _, number in pairs}
    except ValueError:
        rates = {}
    if not rates or not all(0 < rate < float("inf") for rate in rates.values()):
        raise ValueError(
            f"tflops should be a positive number, or one for each dtype such as float16=400,float32=40; got {text!r}."
        )
    return rates


def measured_tflops(device: torch.device | str, dtype: torch.dtype) -> float:
    """10¹² operations a second of large matrix products, the most that a model can reach; CUDA only."""
    with torch.device(device):
        matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    for _ in range(3):
        torch.mm(matrix, matrix)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_NUM_PRODUCTS):
        torch.mm(matrix, matrix)
    torch.cuda.synchronize(device)
    return 2 * _SIDE**3 * _NUM_PRODUCTS / (time.perf_counter() - started) / 1e12


def estimated_seconds(flops: Mapping[str, int], rates: Mapping[str, float]) -> float | None:
    """Operations over operations a second, summed over the dtypes.

    Args:
        flops: operations by dtype.
        rates: 10¹² a second by dtype; that of "" is for any dtype without its own.

    Returns:
        None where a rate is missing.

    Example:
        >>> estimated_seconds({"float16": 4 * 10**12, "float32": 10**12}, {"": 2.0})
        2.5
        >>> estimated_seconds({"float16": 1}, {"float32": 1.0}) is None
        True
    """
    seconds = 0.0
    for dtype, count in flops.items():
        rate = rates.get(dtype, rates.get(""))
        if count and rate is None:
            return None
        seconds += count / (rate or 1.0) / 1e12
    return seconds
