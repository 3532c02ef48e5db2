"""Resampling schemes: pure functions `(log_weights, num_samples, generator) -> ancestors`.

Each scheme is unbiased: particle k is drawn `num_samples * W_k` times on average, W being the normalised weights. A
particle of zero weight is never drawn. The schemes work in float64 on the CPU, whatever the precision of the weights
that they are given.

Source: Chopin and Papaspiliopoulos (2020), *An Introduction to Sequential Monte Carlo*, chapter 9; `ssp`: Gerber,
    Chopin
and Whiteley (2019), *Negative association, ordering and convergence of resampling methods*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from fk_reward.smc.weights import normalized_weights

if TYPE_CHECKING:
    from torch import Generator, Tensor

Resampler: TypeAlias = "Callable[[Tensor, int, Generator], Tensor]"
"""Log-weights `(K,)`, number of samples N, generator (on the CPU), to ancestors `(N,)` int64 in [0, K)."""


def systematic(log_weights: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """One uniform shifts a regular grid of points: each particle is drawn `floor(N W_k)` or `ceil(N W_k)` times.

    Source: Carpenter, Clifford and Fearnhead (1999).

    Args:
        log_weights: `(K,)`, un-normalised; `-inf` is a weight of zero.
        num_samples: N, the number of ancestors to draw.
        generator: source of the randomness, on the CPU.

    Returns:
        `(N,)` int64, ascending.

    Example:
        >>> systematic(torch.tensor([0.0, -torch.inf, 0.0]), 4, torch.Generator().manual_seed(0))
        tensor([0, 0, 2, 2])
    """
    grid = torch.arange(num_samples, dtype=torch.float64)
    return _inverse_cdf((grid + _uniforms(1, generator)) / num_samples, _checked_weights(log_weights))


def stratified(log_weights: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """One uniform in each of N equal strata.

    Source: Kitagawa (1996). Arguments and result: see `systematic`.

    Example:
        >>> stratified(torch.tensor([0.0, -torch.inf, 0.0]), 4, torch.Generator().manual_seed(0))
        tensor([0, 0, 2, 2])
    """
    grid = torch.arange(num_samples, dtype=torch.float64)
    return _inverse_cdf((grid + _uniforms(num_samples, generator)) / num_samples, _checked_weights(log_weights))


def multinomial(log_weights: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """N independent draws.

    Source: Gordon, Salmond and Smith (1993). Arguments and result: see `systematic`.

    Example:
        >>> multinomial(torch.tensor([0.0, -torch.inf, 0.0]), 4, torch.Generator().manual_seed(0))
        tensor([0, 2, 2, 2])
    """
    # sorted, so that the ancestors ascend as those of the other schemes do
    points = _uniforms(num_samples, generator).sort().values
    return _inverse_cdf(points, _checked_weights(log_weights))


def residual(log_weights: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """`floor(N W_k)` copies of each particle, the rest drawn independently from what remains of the weights.

    Source: Liu and Chen (1998). Arguments and result: see `systematic`.

    Example:
        >>> residual(torch.log(torch.tensor([0.5, 0.25, 0.25])), 4, torch.Generator().manual_seed(0))
        tensor([0, 0, 1, 2])
    """
    expected = num_samples * _checked_weights(log_weights)
    copies = _floor_with_tolerance(expected)
    num_left = num_samples - int(copies.sum())
    if num_left > 0:
        left_over = (expected - copies).clamp_min(0.0)
        drawn = _inverse_cdf(_uniforms(num_left, generator).sort().values, left_over / left_over.sum())
        copies = copies + torch.bincount(drawn, minlength=len(copies))
    return torch.repeat_interleave(copies.long())


def ssp(log_weights: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """Srinivasan sampling process: fractional counts are rounded in pairs, up or down, keeping sum and expectation.

    Like `systematic` it draws each particle `floor(N W_k)` or `ceil(N W_k)` times, and its counts are negatively
    associated, for which convergence is proved in any order of the particles.

    Source: Gerber, Chopin and Whiteley (2019). Arguments and result: see `systematic`.

    Example:
        >>> ssp(torch.log(torch.tensor([0.5, 0.25, 0.25])), 4, torch.Generator().manual_seed(0))
        tensor([0, 0, 1, 2])
    """
    expected = num_samples * _checked_weights(log_weights)
    copies = _floor_with_tolerance(expected)
    fractions = (expected - copies).clamp(0.0, 1.0)
    open_indices = [int(k) for k in fractions.nonzero().flatten()]
    rounded_up = _round_in_pairs(fractions.tolist(), open_indices, _uniforms(len(expected), generator).tolist())
    copies[rounded_up] += 1
    return torch.repeat_interleave(_settle_rounding(copies.long(), fractions, num_samples))


RESAMPLERS: dict[str, Resampler] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
    "ssp": ssp,
}
"""Resampling schemes by the name that `FKSteeringConfig.resampling` takes."""


def one_of_each(log_weights: Tensor, generator: Generator) -> Tensor:
    """One draw from each of K families of M members, by the weights within the family.

    Args:
        log_weights: `(K, M)`, un-normalised; `-inf` is a weight of zero. A family without any weight is drawn from
            uniformly: its members are all equally bad.
        generator: source of the randomness, on the CPU.

    Returns:
        `(K,)` int64, in [0, M).

    Raises:
        ValueError: for log-weights that are NaN or `+inf`.

    Example:
        >>> one_of_each(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), torch.Generator().manual_seed(0))
        tensor([0, 1])
    """
    if bool(torch.isnan(log_weights).any()) or bool((log_weights == torch.inf).any()):
        raise ValueError(f"log_weights should be finite or -inf, got {log_weights.tolist()}.")
    none = (log_weights == -torch.inf).all(1, keepdim=True)
    weights = normalized_weights(log_weights.cpu().masked_fill(none.cpu(), 0.0))
    points = _uniforms(len(weights), generator)[:, None]
    drawn = torch.searchsorted(weights.cumsum(1), points, right=True)[:, 0]
    places = torch.arange(weights.shape[1])
    last_positive = places.where(weights > 0, -1).amax(1)  # where the cumulative weight ends below the point
    return drawn.minimum(last_positive)


def flat_indices(places: Tensor, num_particles: int) -> Tensor:
    """Indices within each group as indices of the flat, group-major rows.

    Args:
        places: `(G, n)` int64, in [0, K).
        num_particles: K, rows of each group.

    Returns:
        `(G * n,)` int64.

    Example:
        >>> flat_indices(torch.tensor([[0, 2], [1, 1]]), 3)
        tensor([0, 2, 4, 4])
    """
    return (places + num_particles * torch.arange(len(places))[:, None]).flatten()


def moved_groups(ancestors: Tensor, num_particles: int) -> Tensor:
    """Groups of which some particle was copied or dropped.

    Args:
        ancestors: `(G, K')` int64, flat indices in any order within a group.
        num_particles: K, particles of each group before.

    Returns:
        `(G,)` bool.

    Example:
        >>> moved_groups(torch.tensor([[1, 0], [2, 2]]), 2)
        tensor([False,  True])
    """
    num_after = ancestors.shape[1]
    in_place = flat_indices(torch.arange(num_after).expand_as(ancestors), num_particles).view_as(ancestors)
    return (ancestors.sort(dim=1).values != in_place).any(dim=1) | (num_after < num_particles)


def _checked_weights(log_weights: Tensor) -> Tensor:
    if log_weights.ndim != 1:
        raise ValueError(f"log_weights should be of shape (K,), got {tuple(log_weights.shape)}.")
    if bool(torch.isnan(log_weights).any()) or bool((log_weights == torch.inf).any()):
        raise ValueError(f"log_weights should be finite or -inf, got {log_weights.tolist()}.")
    if bool((log_weights == -torch.inf).all()):
        raise ValueError("log_weights are all -inf: no particle is left to draw.")
    return normalized_weights(log_weights.cpu())


def _uniforms(num: int, generator: Generator) -> Tensor:
    return torch.rand(num, dtype=torch.float64, generator=generator)


def _inverse_cdf(points: Tensor, weights: Tensor) -> Tensor:
    """Smallest index whose cumulative weight exceeds the point; never one of zero weight, however the ends round."""
    indices = torch.searchsorted(weights.cumsum(0), points, right=True)
    last_positive = int(weights.nonzero()[-1])
    return indices.clamp_max(last_positive)


def _floor_with_tolerance(expected: Tensor) -> Tensor:
    """Floor, but 2.9999999999 counts as 3: the error of a softmax must not turn a whole count into a draw."""
    nearest = expected.round()
    return torch.where((expected - nearest).abs() < 1e-9, nearest, expected.floor())


def _round_in_pairs(fractions: list[float], open_indices: list[int], uniforms: list[float]) -> list[int]:
    """Indices that are rounded up. Two fractions trade mass until one of them is 0 or 1, then the next one joins."""
    rounded_up: list[int] = []
    if not open_indices:
        return rounded_up
    first = open_indices[0]
    for second, uniform in zip(open_indices[1:], uniforms, strict=False):
        first = _trade(fractions, (first, second), uniform, rounded_up)
    if fractions[first] > 0.5:  # the counts sum to an integer, so what is left is 0 or 1 up to rounding
        rounded_up.append(first)
    return rounded_up


def _trade(fractions: list[float], pair: tuple[int, int], uniform: float, rounded_up: list[int]) -> int:
    """Settle one of the pair; return the other, which stays open and carries the rest of the mass."""
    first, second = pair
    total = fractions[first] + fractions[second]
    up, down = min(1.0 - fractions[first], fractions[second]), min(fractions[first], 1.0 - fractions[second])
    gain = up if uniform * (up + down) < down else -down
    fractions[first] += gain
    fractions[second] = total - fractions[first]
    if total > 1.0:  # one of them reaches 1
        settled, left = (first, second) if fractions[first] >= fractions[second] else (second, first)
        rounded_up.append(settled)
    else:  # one of them reaches 0
        settled, left = (first, second) if fractions[first] <= fractions[second] else (second, first)
    fractions[left] = min(max(total - (1.0 if total > 1.0 else 0.0), 0.0), 1.0)
    return left


def _settle_rounding(copies: Tensor, fractions: Tensor, num_samples: int) -> Tensor:
    """Guard against accumulated rounding: the counts must sum to exactly `num_samples`."""
    missing = num_samples - int(copies.sum())
    if missing > 0:
        copies[int(fractions.argmax())] += missing
    elif missing < 0:
        copies[int(copies.argmax())] += missing
    return copies
