"""`reward_scale="auto"`: the lambda at which the effective sample size of the rewards reaches a target."""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.weights import effective_sample_size

_NUM_BISECTIONS = 60
_JUST_BELOW = 1.0 - 1e-9  # so that rounding does not decide whether a threshold of the same value asks for resampling


def reward_scale_for_ess(scores: Tensor, target_ess: float) -> float:
    """Bisection on lambda such that the ESS of the weights `exp(lambda * scores)` is `target_ess`.

    The ESS falls from K at lambda 0 to the number of particles that share the highest score, so that a target below
    that number cannot be reached; then the lambda is returned at which the ESS is within one per cent of its limit.

    Source: the tempering rule of adaptive SMC (Jasra et al. 2011), applied to one step.

    Args:
        scores: `(K,)`, finite: cumulative log-potentials in units of the reward. Not all equal.
        target_ess: in [1, K].

    Returns:
        lambda, positive.

    Raises:
        ValueError: when all scores are equal, so that no lambda changes the ESS.

    Example:
        >>> scores = torch.tensor([0.0, 0.1, 0.2, 0.3])
        >>> scale = reward_scale_for_ess(scores, 2.0)
        >>> round(float(effective_sample_size(scale * scores)), 6)
        2.0
    """
    scores = scores.to(torch.float64)
    spread = float(scores.max() - scores.min())
    if spread == 0.0:
        raise ValueError("All scores are equal: no reward_scale changes their effective sample size.")
    num_best = int((scores == scores.max()).sum())
    target = max(target_ess * _JUST_BELOW, 1.01 * num_best)
    low, high = 0.0, 1.0 / spread
    while float(effective_sample_size(high * scores)) > target:
        low, high = high, 2.0 * high
    for _ in range(_NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        if float(effective_sample_size(middle * scores)) > target:
            low = middle
        else:
            high = middle
    return high
