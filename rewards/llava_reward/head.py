"""The head of LLaVA-Reward: SkipCA, if it is on, and a linear map to the reward's raw output; always in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fk_reward.rewards.llava_reward.skip_ca import SkipCA

HeadT = TypeVar("HeadT", bound="RewardHead")


class RewardHead(nn.Module):
    """value_head(SkipCA(e_h, e_v)), or value_head(e_h) without SkipCA; Zhou et al. 2025 (arXiv 2507.21391).

    **Float32 stays float32.** Rewards differ by less than what bfloat16 resolves, and the head is small. So the weights
    ignore every request for a narrower dtype, their own or a parent's (`model.to(torch.bfloat16)`, `model.half()`),
    while its device is obeyed; float64 is accepted. Inputs are cast to the dtype of the weights, and autocast is off
    inside. Where flat parameters must be of one dtype (FSDP), make the head a unit of its own.

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
        self.float()

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

        def keep_precision(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            narrowed = converted.is_floating_point() and torch.finfo(converted.dtype).bits < 32
            return tensor.to(device=converted.device) if narrowed else converted

        return super()._apply(keep_precision, recurse)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Autocast off; "meta", where sizes are counted, has none that could be."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
