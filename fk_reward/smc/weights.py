"""Normalised weights, effective sample size and log-means, all computed from log-weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def normalized_weights(log_weights: Tensor) -> Tensor:
    """Weights that sum to 1 over the last dimension.

    Args:
        log_weights: `(..., K)`, un-normalised; `-inf` is a weight of zero.

    Returns:
        `(..., K)` float64; all 0 where every log-weight is `-inf`.

    Example:
        >>> normalized_weights(torch.tensor([1000.0, 1000.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    weights = torch.softmax(log_weights.to(torch.float64), dim=-1)
    return weights.masked_fill(_all_zero(log_weights)[..., None], 0.0)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Effective sample size `(sum w)^2 / sum w^2`, between 1 and K.

    Source: Kong, Liu and Wong (1994); Chopin and Papaspiliopoulos (2020), chapter 8.

    Args:
        log_weights: `(..., K)`, un-normalised.

    Returns:
        `(...)` float64; 0 where every log-weight is `-inf`.

    Example:
        >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
        tensor(2., dtype=torch.float64)
    """
    log_weights = log_weights.to(torch.float64)
    ess = torch.exp(2 * torch.logsumexp(log_weights, dim=-1) - torch.logsumexp(2 * log_weights, dim=-1))
    return ess.clamp(1.0, float(log_weights.shape[-1])).masked_fill(_all_zero(log_weights), 0.0)


def log_mean_increment(log_weights: Tensor, log_increments: Tensor) -> Tensor:
    """Logarithm of the weighted mean of the incremental weights, `log sum_k W_k exp(increment_k)`.

    Summed over the steps of a run it estimates the log-normalising constant of the tilted distribution (the log
    evidence).
    Source: Chopin and Papaspiliopoulos (2020), chapter 10.

    Args:
        log_weights: `(..., K)`, un-normalised, before the increment.
        log_increments: `(..., K)`, the log-potentials that are about to be added.

    Returns:
        `(...)` float64.

    Example:
        >>> log_mean_increment(torch.zeros(4), torch.full((4,), 2.5))
        tensor(2.5000, dtype=torch.float64)
    """
    before = log_weights.to(torch.float64)
    after = before + log_increments
    return torch.logsumexp(after, dim=-1) - torch.logsumexp(before, dim=-1)


def _all_zero(log_weights: Tensor) -> Tensor:
    """`(...)` bool: no particle has any weight."""
    return (log_weights == -torch.inf).all(dim=-1)
