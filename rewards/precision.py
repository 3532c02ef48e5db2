"""Floating precision of rewards: half for towers on a GPU, float32 for heads, TF32 only where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

HeadT = TypeVar("HeadT", bound="Float32Sequential")


class Halving(Protocol):
    """A reward, as far as this file knows it."""

    halves_on_cuda: bool


RewardT = TypeVar("RewardT", bound=Halving)


class Float32Sequential(nn.Sequential):
    """Layers that stay in float32 whatever dtype the model around them is converted to.

    A head adds up a thousand products to one number, of which images of one prompt differ in the third digit: half
    precision would make them equal. It reads states of any floating dtype.

    Example:
        >>> head = Float32Sequential(nn.Linear(2, 1)).half()
        >>> head[0].weight.dtype, head(torch.ones(1, 2, dtype=torch.float16)).dtype
        (torch.float32, torch.float32)
    """

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) floating to (..., d) float32."""
        return super().forward(states.float())

    def _apply(self: HeadT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeadT:
        """Every conversion of a module and of its parents arrives here (`to`, `half`, `cuda`, `to_empty`, ...)."""
        return super()._apply(lambda tensor: unless_narrower(fn, tensor), recurse)


def unless_narrower(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """A conversion of a tensor, of which only the device is kept where it would be narrower than 32 bits.

    Args:
        fn: as `nn.Module._apply` gets it.
        tensor: a parameter or buffer.

    Example:
        >>> [unless_narrower(fn, torch.ones(1)).dtype for fn in (torch.Tensor.half, torch.Tensor.double)]
        [torch.float32, torch.float64]
    """
    converted = fn(tensor)
    narrowed = converted.is_floating_point() and torch.finfo(converted.dtype).bits < 32
    return tensor.to(device=converted.device) if narrowed else converted


def float32_linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """A linear layer computed in float32, whatever the dtype of its weights and of the states.

    Args:
        layer: with weights (d, D).
        states: (B, D) floating.

    Returns:
        (B, d) float32.

    Example:
        >>> float32_linear(nn.Linear(2, 1).half(), torch.ones(3, 2, dtype=torch.float16)).dtype
        torch.float32
    """
    bias = None if layer.bias is None else layer.bias.float()
    return functional.linear(states.float(), layer.weight.float(), bias)


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
