"""The rule of Metropolis, for chains whose target is `p(x) exp(lambda r(x))` and whose proposals keep p."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def accepted(before: Tensor, proposed: Tensor, uniforms: Tensor, *, reward_scale: float) -> Tensor:
    """Metropolis: which proposals are accepted, with probability `min(1, exp(lambda (r' - r)))`.

    A forbidden image (a reward of -inf) is left at once, and never gone to from an allowed one.

    Args:
        before: `(B,)`, rewards of the chains.
        proposed: `(B,)`, rewards of their proposals.
        uniforms: `(B,)` in [0, 1).
        reward_scale: lambda.

    Example:
        >>> rewards = torch.tensor([1.0, 1.0, -torch.inf]), torch.tensor([2.0, 0.0, 0.0])
        >>> accepted(*rewards, torch.full((3,), 0.9), reward_scale=1.0)
        tensor([ True, False,  True])
    """
    leaves = before == -torch.inf
    stays = (proposed == -torch.inf) & ~leaves
    gain = reward_scale * torch.where(leaves | stays, 0.0, proposed.double() - before.double())
    return (uniforms < gain.clamp(max=0).exp()) & ~stays
