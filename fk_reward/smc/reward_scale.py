"""Lambda by a word: `"card"`, by the spread that the reward's card states, or `"auto"`, by the rewards themselves.

`"card"` is `USUAL_TILT / spread`: a number that is known before the run. `"auto"` is the lambda at which the effective
sample size of the rewards reaches a target, with a bound. Tempering alone has none: previews of almost equal reward
reach a target ESS, too, at a lambda of a million, with which the finished images would then be weighed. So lambda is
never above `LARGEST_TILT / spread`, with the spread that the reward's card states, and the particle filter lowers it
wherever later rewards, the finished ones at last, differ more than those that chose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fk_reward.smc.weights import effective_sample_size
from fk_reward.value_checks import real_number

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
CARD = "card"

USUAL_TILT = 1.5
"""Lambda times the spread with `"card"`: one standard deviation is worth a factor of 4.5 in weight."""

LARGEST_TILT = 3.0
"""Largest lambda times the spread of a reward: one standard deviation is then worth a factor of 20 in weight."""

_SMALLEST_SPREAD = 1e-3
"""Spread, as a fraction of the largest reward, below which differences may be the rounding of half precision."""

_NUM_BISECTIONS = 60
_JUST_BELOW = 1.0 - 1e-9  # so that rounding does not decide whether a threshold of the same value asks for resampling


def known_reward_scale(reward_scale: float | str, *, spread: float | None) -> float | None:
    """Lambda as far as it is known before the run.

    Args:
        reward_scale: a number, `"card"` or `"auto"`.
        spread: standard deviation of the reward within a group, as its card states it; None where it is not known.

    Returns:
        The number; `USUAL_TILT / spread` for `"card"`. None for `"auto"`, and for `"card"` without a spread, where
        lambda is found by the rewards of the run.

    Example:
        >>> known_reward_scale("card", spread=0.1), known_reward_scale("card", spread=None)
        (15.0, None)
    """
    if reward_scale == AUTO:
        return None
    if reward_scale == CARD:
        return None if spread is None else USUAL_TILT / spread
    return float(reward_scale)


def checked_reward_scale(reward_scale: float | str) -> float | str:
    """Lambda of a search that takes a number, at least 0, or `"card"`.

    Raises:
        TypeError: neither.
        ValueError: a number below 0, or not finite.
    """
    if reward_scale == CARD:
        return CARD
    return real_number("reward_scale", reward_scale, low=0.0, note='or "card"')


def scale_of_card(reward_scale: float | str, *, spread: float | None) -> float:
    """Lambda as a number, for searches that do not find one on the way.

    Raises:
        ValueError: `"card"` with a card that states no spread.

    Example:
        >>> scale_of_card("card", spread=0.1), scale_of_card(2.0, spread=None)
        (15.0, 2.0)
    """
    found = known_reward_scale(reward_scale, spread=spread)
    if found is None:
        raise ValueError(
            "reward_scale='card' needs a reward whose card states the spread of its scores within a prompt, and this "
            f"one's does not: give a number, about {USUAL_TILT} / (standard deviation among images of one prompt)."
        )
    return found


def tempered_reward_scale(scores: Tensor, target_ess: float, *, spread: float | None = None) -> float:
    """Lambda of one group by one set of rewards: `reward_scale_for_ess`, bounded by `LARGEST_TILT / spread`.

    Args:
        scores: `(K,)`, finite: rewards. Not all equal.
        target_ess: in [1, K].
        spread: standard deviation of the reward within a group, as its card states it; None where it is not known. It
            is never taken to be below a thousandth of the largest score.

    Returns:
        lambda, positive.

    Example:
        >>> scores = torch.tensor([0.5, 0.5000001])
        >>> reward_scale_for_ess(scores, 1.5) > 1e6, round(tempered_reward_scale(scores, 1.5, spread=0.1))
        (True, 30)
    """
    scores = scores.to(torch.float64)
    smallest = max(_SMALLEST_SPREAD * float(scores.abs().max()), torch.finfo(torch.float32).tiny)
    bound = LARGEST_TILT / max(spread or 0.0, smallest)
    if float(effective_sample_size(bound * scores)) >= target_ess:
        return bound
    return reward_scale_for_ess(scores, target_ess)


def reward_scale_for_ess(scores: Tensor, target_ess: float) -> float:
    """Bisection on lambda such that the ESS of the weights `exp(lambda * scores)` is `target_ess`.

    The ESS falls from K at lambda 0 to the number of particles that share the highest score, so that a target below
    that number cannot be reached; then the lambda is returned at which the ESS is within one per cent of its limit.

    Source: the tempering rule of adaptive SMC (Jasra et al. 2011), applied to one step.

    Args:
        scores: `(K,)`, finite: rewards. Not all equal.
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
