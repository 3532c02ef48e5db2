"""Layers that compute in float32 whatever the dtype of the model around them: heads and scores of rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

HeadT = TypeVar("HeadT", bound="Float32Sequential")


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
