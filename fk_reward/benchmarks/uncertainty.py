"""Averages with their uncertainty: standard errors, bootstrap intervals over clusters, rates of convergence."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error.

    Args:
        values: at least two independent ones.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        raise ValueError(f"A standard error needs at least two values, got {array.size}.")
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size))


def root_mean_square(values: Sequence[float]) -> float:
    """Square root of the mean of the squares.

    Example:
        >>> root_mean_square([3.0, -3.0])
        3.0
    """
    return float(np.sqrt(np.mean(np.square(np.asarray(values, dtype=np.float64)))))


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y in log x: the exponent of a power law.

    Example:
        >>> round(log_log_slope([1, 4, 16], [1.0, 0.5, 0.25]), 6)
        -0.5
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean and percentile interval of values that depend on one another within clusters (the seeds of one prompt, say).

    In each bootstrap sample clusters are drawn with replacement, and then values within each of them. Strata (the
    tasks of a benchmark, say) are kept: the estimate is the mean of their means, whatever their sizes. For the
    difference of two methods give the paired differences.

    Source: Davison and Hinkley (1997), *Bootstrap Methods and their Application*, section 3.8: both stages with
    replacement, which errs on the side of a longer interval and does not collapse where a stratum has one cluster.

    Args:
        values: `(n,)`, finite.
        clusters: `(n,)`, the cluster of each value.
        strata: `(n,)`, the stratum of each value; one for all when missing.
        num_resamples: number of bootstrap samples.
        confidence: of the interval, in (0, 1).
        seed: of the bootstrap.

    Raises:
        ValueError: without values, or when the lengths differ.

    Example:
        >>> clustered_bootstrap([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
        Interval(estimate=0.5, low=0.0, high=1.0)
    """
    strata = [None] * len(values) if strata is None else strata
    if len(values) == 0 or not len(values) == len(clusters) == len(strata):
        raise ValueError(
            "values, clusters and strata should be of one length, at least 1; "
            f"got {len(values)}, {len(clusters)} and {len(strata)}."
        )
    rng = np.random.default_rng(seed)
    estimates, samples = [], []
    for stratum in dict.fromkeys(strata):
        inside = [i for i, name in enumerate(strata) if name == stratum]
        groups = _grouped([values[i] for i in inside], [clusters[i] for i in inside])
        estimates.append(np.mean([values[i] for i in inside]))
        samples.append(_resampled_means(groups, num_resamples, rng))
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(np.mean(samples, axis=0), [tail, 1.0 - tail])
    return Interval(estimate=float(np.mean(estimates)), low=float(low), high=float(high))


def _grouped(values: Sequence[float], clusters: Sequence[Hashable]) -> list[list[float]]:
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(float(value))
    return list(groups.values())


def _resampled_means(groups: list[list[float]], num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of two-stage bootstrap samples, `(num_resamples,)`."""
    sizes = np.array([len(group) for group in groups])
    padded = np.array([group + [0.0] * (sizes.max() - len(group)) for group in groups])
    drawn = rng.integers(len(groups), size=(num_resamples, len(groups)))
    members = (rng.random((*drawn.shape, sizes.max())) * sizes[drawn][..., None]).astype(int)
    counted = np.arange(sizes.max()) < sizes[drawn][..., None]
    return (padded[drawn[..., None], members] * counted).sum((1, 2)) / counted.sum((1, 2))
