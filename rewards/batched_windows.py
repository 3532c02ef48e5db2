"""Attention of Qwen-VL's vision towers: windows, or images, of equal length in one call instead of one call each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention as Qwen2VLVisionAttention
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

_EAGER_SCORES = 2**26
"""Attention scores that "eager" may hold for a head at once; other implementations hold none."""

_GROUPS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of the windows of a pass that is running: by the tensor that all layers get."""


class _InBatches(nn.Module):
    """The forward pass, before transformers' attention of a family in the order of inheritance."""

    config: Any
    num_heads: int
    scaling: float
    qkv: nn.Module
    proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the parent's.

        Args:
            hidden_states: (S, D), the patches of all images, window by window.
            cu_seqlens: (W + 1,), where each window begins, and S.
            position_embeddings: cosines and sines, each (S, D / heads).
            max_seqlen: only read with Flash Attention.
            kwargs: as the parent takes them.
        """
        implementation = self.config._attn_implementation
        if "flash" in implementation:  # it takes windows of any lengths in one call
            arguments = {"position_embeddings": position_embeddings, "max_seqlen": max_seqlen, **kwargs}
            return super().forward(hidden_states, cu_seqlens, **arguments)  # type: ignore[misc]  # that of the family
        if position_embeddings is None:
            raise ValueError("The vision towers of Qwen-VL need position_embeddings.")
        states = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(states[0], states[1], *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output = torch.empty_like(states[2])
        for rows in _kept_groups(cu_seqlens, eager=implementation == "eager"):
            parts = [part[rows].transpose(1, 2) for part in (query, key, states[2])]
            settings = {"attention_mask": None, "scaling": self.scaling, "dropout": 0.0, "is_causal": False}
            output = output.index_put((rows,), attend(self, *parts, **settings, **kwargs)[0])
        return self.proj(output.flatten(1))


class BatchedWindowAttention(_InBatches, Qwen2_5_VLVisionAttention):
    """transformers' attention, whose windows of one length are a batch.

    transformers calls the attention once for each window and layer unless Flash Attention is used: 22,432 times for
    eight images of 1024 x 1024 pixels. Their windows have three lengths, so that 88 calls do. It adds no state: an
    instance of the parent becomes one of these by `batch_windows`.
    """


class BatchedImageAttention(_InBatches, Qwen2VLVisionAttention):
    """The same for Qwen2-VL, which has no windows: images of one size are a batch."""


class BatchedImageAttention3(_InBatches, Qwen3VLVisionAttention):
    """The same for Qwen3-VL, which has none either."""


_BATCHED: dict[type[nn.Module], type[nn.Module]] = {
    Qwen2_5_VLVisionAttention: BatchedWindowAttention,
    Qwen2VLVisionAttention: BatchedImageAttention,
    Qwen3VLVisionAttention: BatchedImageAttention3,
}


def _kept_groups(cu_seqlens: Tensor, *, eager: bool) -> tuple[Tensor, ...]:
    """`_groups`, of all layers that share their windows made once: the device is waited for once, not in each layer."""
    kept = _GROUPS.setdefault(cu_seqlens, {})
    if eager not in kept:
        kept[eager] = tuple(_groups(cu_seqlens, eager=eager))
    return kept[eager]


def _groups(cu_seqlens: Tensor, *, eager: bool) -> Iterator[Tensor]:
    """For each length of a window the places (N, L) of the patches of N windows."""
    starts = cu_seqlens[:-1].to(torch.int64)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).to(torch.int64)
    for length in lengths.unique().tolist():
        if not length:
            continue
        rows = starts[lengths == length, None] + torch.arange(length, device=starts.device)
        yield from rows.split(max(1, _EAGER_SCORES // length**2) if eager else len(rows))


def batch_windows(model: nn.Module) -> None:
    """Let the vision towers of Qwen-VL in a model call their attention once for each length, in place.

    Other models stay as they are.

    Example:
        >>> from fk_reward.rewards.llava_reward.backbones.base import random_backbone
        >>> type(random_backbone("qwen2_5_vl").model.visual.blocks[0].attn).__name__
        'BatchedWindowAttention'
    """
    for module in model.modules():
        module.__class__ = _BATCHED.get(type(module), type(module))
