"""The head of LLaVA-Reward: SkipCA, if it is on, and a linear map to the reward's raw output; always in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fk_reward.rewards.float32_layers import unless_narrower

HeadT = TypeVar("HeadT", bound="RewardHead")


class RewardHead(nn.Module):
    """value_head(SkipCA(e_h, e_v)), or value_head(e_h) without SkipCA; Zhou et al. 2025 (arXiv 2507.21391).

    **Float32 stays float32.** Rewards differ by less than what bfloat16 resolves, and the head is small. So the weights
    ignore every conversion to a narrower dtype, their own or a parent's (`model.to(torch.bfloat16)`, `model.half()`),
    but follow to its device; float64 is accepted. Inputs are cast to the dtype of the weights, and autocast is off
    inside. Where flat parameters must be of one dtype (FSDP), wrap the head as its own unit.

    The initial weights are those of the official code for training: normal with standard deviation 1 / (D + 1), the
    RMSNorm's ones.

    Attributes:
        skip_ca: the cross-attention, or None.
        value_head: linear map D to d without bias.

    Args:
        hidden_size: D.
        value_head_dim: d; 1 for Bradley-Terry and binary rewards, even for general preferences.
        cross_attention: whether there is a SkipCA.
        eps: epsilon of its RMSNorm.
        generator: source of the initial weights; None for the global one.

    Example:
        >>> head = RewardHead(4, value_head_dim=1, cross_attention=False, eps=1e-6).to(torch.bfloat16)
        >>> head(torch.ones(2, 4, dtype=torch.bfloat16)).dtype
        torch.float32

    D: width of the language model, d: size of the reward's raw output.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        value_head_dim: int,
        cross_attention: bool,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.skip_ca = SkipCA(hidden_size, eps=eps) if cross_attention else None
        self.value_head = nn.Linear(hidden_size, value_head_dim, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / (hidden_size + 1), generator=generator)
        self.float()  # the default dtype may be narrower

    def forward(self, hidden: Tensor, visual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Read a reward from a state.

        Args:
            hidden: (B, D) floating, state of the last real token of each row.
            visual: (B, N, D) floating, visual tokens; not read without SkipCA.
            mask: (B, N) bool, True at real visual tokens; not read without SkipCA.

        Returns:
            (B, d) in the dtype of the weights.

        Raises:
            ValueError: when SkipCA misses its inputs or their shapes do not fit.

        B: number of images, N: largest number of visual tokens, D: width of the language model, d: value_head_dim.
        """
        dtype = self.value_head.weight.dtype
        with _without_autocast(hidden.device.type):
            state = hidden.to(dtype)
            if self.skip_ca is not None:
                if visual is None or mask is None:
                    raise ValueError("This head has a SkipCA; give it the visual tokens and their mask.")
                state = self.skip_ca(state, visual.to(dtype), mask)
            return self.value_head(state)

    def _apply(self: HeadT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeadT:
        """Every conversion of a module and of its parents arrives here (`to`, `half`, `cuda`, `to_empty`, ...)."""
        return super()._apply(lambda tensor: unless_narrower(fn, tensor), recurse)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    # torch.autocast raises for devices without autocast, such as "meta", on which sizes are counted.
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class SkipCA(nn.Module):
    """Cross-attention from the last token's hidden state to the visual tokens, with a residual and RMSNorm.

    RMSNorm(e_h + sum_n softmax_n(<W_q e_h, W_k e_n> / sqrt(D)) W_v e_n), a single head without biases; Zhou et al. 2025
    (arXiv 2507.21391). The official code computes it for every token of the sequence and reads the last;
    here only the last token is a query, so keys and values need not be formed: <W_q e_h, W_k e_n> is
    <W_k^T W_q e_h, e_n>, and W_v is applied to the weighted sum. That costs O(N D + D^2) per row instead of O(N D^2).

    Attributes:
        W_q: linear map of the state, D to D.
        W_k: linear map of the visual tokens to keys, D to D.
        W_v: linear map of the visual tokens to values, D to D.
        norm: RMSNorm of the sum.

    Args:
        hidden_size: D.
        eps: epsilon of the RMSNorm; 1e-5 in the official Phi-3.5-vision rewards, 1e-6 in the Qwen2.5-VL ones.

    Example:
        >>> skip_ca = SkipCA(4, eps=1e-6)
        >>> hidden, visual = torch.ones(2, 4), torch.zeros(2, 3, 4)
        >>> skip_ca(hidden, visual, torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 4])

    D: width of the language model.
    """

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.W_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.W_k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.W_v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.RMSNorm(hidden_size, eps=eps)

    def forward(self, hidden: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        """Attend and normalise.

        Args:
            hidden: (B, D) state of the last real token of each row.
            visual: (B, N, D) visual tokens, padded to one length with any finite values.
            mask: (B, N) bool, True at real visual tokens. A row without any gets attention 0, so RMSNorm(e_h).

        Returns:
            (B, D).

        Raises:
            ValueError: when the shapes do not fit together or the mask is not boolean.

        B: number of images, N: largest number of visual tokens, D: width of the language model.
        """
        rows, width = hidden.shape
        if visual.ndim != 3 or (visual.shape[0], visual.shape[2]) != (rows, width):
            raise ValueError(f"visual must have shape ({rows}, N, {width}), got {tuple(visual.shape)}.")
        if mask.shape != visual.shape[:2] or mask.dtype != torch.bool:
            expected = tuple(visual.shape[:2])
            raise ValueError(f"mask must be boolean of shape {expected}, got {mask.dtype} of {tuple(mask.shape)}.")
        query = self.W_q(hidden) @ self.W_k.weight  # W_k^T W_q e_h
        scores = torch.einsum("bd,bnd->bn", query, visual) / width**0.5
        # The lowest finite number, not -inf: a row without visual tokens would be NaN; the mask makes its weights 0.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) * mask
        attention = self.W_v(torch.einsum("bn,bnd->bd", weights, visual))
        return self.norm(hidden + attention)
