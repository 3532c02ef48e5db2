"""SkipCA: the last token's state looks back at the visual tokens, past all layers of the language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SkipCA(nn.Module):
    """Cross-attention from the last token's hidden state to the visual tokens, with a residual and RMSNorm.

    RMSNorm(e_h + sum_n softmax_n(<W_q e_h, W_k e_n> / sqrt(D)) W_v e_n), a single head without biases; Zhou et al. 2025
    (arXiv 2507.21391). The official code computes it for every token of the sequence and reads the last;
    here only the last token asks, so keys and values need not be formed: <W_q e_h, W_k e_n> = <W_k^T W_q e_h, e_n>, and
    W_v is applied to the weighted sum. That costs O(N D + D^2) a row in place of O(N D^2).

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
        query = self.W_q(hidden) @ self.W_k.weight
        scores = torch.einsum("bd,bnd->bn", query, visual) / width**0.5
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) * mask
        attention = self.W_v(torch.einsum("bn,bnd->bd", weights, visual))
        return self.norm(hidden + attention)
