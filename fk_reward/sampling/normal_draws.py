"""Normal numbers that PyTorch draws while a block runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NormalDraws(TorchFunctionMode):
    """Keeps what `torch.randn` returns inside the block.

    Attributes:
        drawn: the tensors, in their order.

    Example:
        >>> with NormalDraws() as draws:
        ...     noise = torch.randn(2)
        >>> draws.drawn[0] is noise
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and keep what it drew."""
        output = func(*args, **(kwargs or {}))
        if func is not torch.randn:
            return output
        self.drawn.append(self.kept(output))
        return self.drawn[-1]

    def kept(self, numbers: Tensor) -> Tensor:
        """What is kept of a draw, and handed on in its place."""
        return numbers
