"""Attention on tensors without numbers as the kernels of a GPU do it: the matrix of its weights is never in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class FusedAttention(TorchFunctionMode):
    """Sends `scaled_dot_product_attention` of meta tensors to a fused kernel.

    On the meta device PyTorch takes the one that writes out queries times keys, which no GPU does that can avoid it.
    The fused kernels of all devices return the same: the output, and a number for each query.

    Example:
        >>> q = torch.empty(1, 2, 5, 8, device="meta")
        >>> with FusedAttention():
        ...     functional.scaled_dot_product_attention(q, q, q).shape
        torch.Size([1, 2, 5, 8])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        values = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            fused = _fused(*args, **values)
            if fused is not None:
                return fused
        return func(*args, **values)


def _fused(  # noqa: PLR0913, PLR0917 (PyTorch's signature)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The output, None where it is PyTorch's own business: real tensors, and shapes that the kernel does not take."""
    if not (query.is_meta or key.is_meta or value.is_meta) or query.ndim != 4:
        return None
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    return _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of floating-point operations, which learns to count the fused kernel.

    Example:
        >>> q = torch.empty(1, 2, 5, 8, device="meta")
        >>> with flop_counter() as counter, FusedAttention():
        ...     _ = functional.scaled_dot_product_attention(q, q, q)
        >>> counter.get_total_flops() == 2 * 2 * (2 * 5 * 5 * 8)
        True
    """
    return FlopCounterMode(display=False, custom_mapping={_FUSED: _flops})


def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
