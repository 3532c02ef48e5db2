"""Floating precision of rewards: half on a GPU unless a dtype was named, TF32 only where it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch


class Halving(Protocol):
    """A reward, as far as this file knows it."""

    halves_on_cuda: bool


RewardT = TypeVar("RewardT", bound=Halving)


def in_loaded_dtype(reward: RewardT, torch_dtype: torch.dtype | None) -> RewardT:
    """Say of a reward that was just loaded whether its dtype was named; return it.

    Args:
        reward: in float32 where the dtype is None.
        torch_dtype: as the user gave it; None for float32 on the CPU and the reward's `half_dtype` on CUDA.
    """
    reward.halves_on_cuda = torch_dtype is None
    return reward


def is_cuda(device: str | torch.device | None) -> bool:
    """Whether a device is a GPU on which half precision is the default.

    Example:
        >>> is_cuda("cuda:1"), is_cuda("cpu"), is_cuda(None)
        (True, False, False)
    """
    return device is not None and torch.device(device).type == "cuda"


@contextmanager
def no_silent_tf32() -> Iterator[None]:
    """Let convolutions use TF32 inside the block only where matrix products may, which a user has to allow.

    PyTorch allows it for convolutions by default, so that the patch embedding of a model in float32 would be computed
    with 10 bits. `torch.set_float32_matmul_precision("high")` allows it for both.

    Example:
        >>> with no_silent_tf32():
        ...     torch.backends.cudnn.allow_tf32
        False
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
