"""Statistics of benchmarks: estimates by task and paired differences with intervals, ratios, diversity.

The bootstrap is our own: `scipy.stats.bootstrap` knows no clusters, and refuses a stratum with a single one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap percentile interval."""

    estimate: float
    low: float
    high: float


OVERALL = "overall"
"""Name of the mean of the tasks."""

Ends = dict[str, float | None]
"""`estimate`, and the ends of its interval, `low` and `high`: None if there are too few values for them."""


class Outcome(NamedTuple):
    """One result of a method.

    Attributes:
        value: the figure.
        prompt: the cluster: values of one prompt depend on one another.
        task: the stratum: tasks count alike, whatever their sizes.
    """

    value: float
    prompt: Hashable
    task: str


Name = TypeVar("Name", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)


def estimate(outcomes: Iterable[Outcome]) -> Ends:
    """Mean of the tasks' means, with its 95 % bootstrap interval over prompts within tasks (`clustered_bootstrap`).

    A task with a single outcome says nothing about its variation: both ends are then None.

    Example:
        >>> estimate([Outcome(1.0, "a cow", "single_object"), Outcome(0.0, "a dog", "single_object")])
        {'estimate': 0.5, 'low': 0.0, 'high': 1.0}
        >>> estimate([Outcome(1.0, "a cow", "single_object")])
        {'estimate': 1.0, 'low': None, 'high': None}
    """
    values, prompts, tasks = zip(*outcomes, strict=True)
    interval = vars(clustered_bootstrap(values, prompts, strata=tasks))
    return interval if min(Counter(tasks).values()) > 1 else {**interval, "low": None, "high": None}


def estimate_by_task(outcomes: Sequence[Outcome]) -> dict[str, Ends]:
    """`estimate` of all outcomes, by the name `OVERALL`, and of each task."""
    tasks = {task: [o for o in outcomes if o.task == task] for task in dict.fromkeys(o.task for o in outcomes)}
    return {name: estimate(part) for name, part in {OVERALL: outcomes, **tasks}.items()}


def compare(results: Mapping[Name, Mapping[Key, Outcome]], baseline: Name) -> dict[Name, dict[str, Ends] | None]:
    """Compare each method with a baseline, on the samples that both have.

    Args:
        results: method -> outcomes by sample; equal keys are paired (the same prompt and seed).
        baseline: the method that is subtracted from the others.

    Returns:
        Each other method -> `estimate_by_task` of the paired differences; None without a common sample.

    Example:
        >>> cow, dog = (("a cow", "single_object"), ("a dog", "single_object"))
        >>> plain = {0: Outcome(0.0, *cow), 1: Outcome(1.0, *dog)}
        >>> compare({"plain": plain, "fk": {0: Outcome(1.0, *cow), 1: Outcome(1.0, *dog)}}, "plain")["fk"]["overall"]
        {'estimate': 0.5, 'low': 0.0, 'high': 1.0}
    """
    differences = {
        name: paired_differences(outcomes, results[baseline]) for name, outcomes in results.items() if name != baseline
    }
    return {name: estimate_by_task(found) if found else None for name, found in differences.items()}


def paired_differences(first: Mapping[Key, Outcome], second: Mapping[Key, Outcome]) -> list[Outcome]:
    """The first less the second, on the samples that both have."""
    return [ours._replace(value=ours.value - second[key].value) for key, ours in first.items() if key in second]


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
    columns = np.asarray(values, dtype=np.float64)[:, None]
    means = _bootstrap_means(columns, clusters, strata, num_resamples=num_resamples, seed=seed)[..., 0]
    return _percentile_interval(means, confidence)


def clustered_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Ratio of two means of paired values, and its interval, by the bootstrap of `clustered_bootstrap`.

    Both means are taken over the same clusters and values in each bootstrap sample.

    Args:
        numerators: `(n,)`, finite.
        denominators: `(n,)`, finite, at least 0.
        clusters: as in `clustered_bootstrap`.
        strata: as in `clustered_bootstrap`.
        num_resamples: number of bootstrap samples.
        confidence: of the interval, in (0, 1).
        seed: of the bootstrap.

    Returns:
        None if in some bootstrap sample all denominators are 0.

    Example:
        >>> clustered_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], ["a", "b", "c"])
        Interval(estimate=0.5, low=0.5, high=0.5)
        >>> clustered_ratio([1.0, 1.0], [0.0, 1.0], ["a", "b"]) is None
        True
    """
    strata = [None] * len(numerators) if strata is None else strata
    columns = np.column_stack([numerators, denominators]).astype(np.float64)
    means = _bootstrap_means(columns, clusters, strata, num_resamples=num_resamples, seed=seed)
    if (means[..., 1] <= 0).any():
        return None
    return _percentile_interval(means[..., 0] / means[..., 1], confidence)


def _percentile_interval(statistics: np.ndarray, confidence: float) -> Interval:
    """The first is the estimate, the others are those of the bootstrap samples."""
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(statistics[1:], [tail, 1.0 - tail])
    return Interval(estimate=float(statistics[0]), low=float(low), high=float(high))


def _bootstrap_means(
    columns: np.ndarray, clusters: Sequence[Hashable], strata: Sequence[Hashable], *, num_resamples: int, seed: int
) -> np.ndarray:
    """Means over the strata of the columns `(n, d)`: of all values, then of each sample, `(1 + num_resamples, d)`."""
    rng = np.random.default_rng(seed)
    means = []
    for stratum in dict.fromkeys(strata):
        inside = [i for i, name in enumerate(strata) if name == stratum]
        samples = _resampled_means(_grouped(columns[inside], [clusters[i] for i in inside]), num_resamples, rng)
        means.append(np.concatenate([columns[inside].mean(axis=0, keepdims=True), samples]))
    return np.mean(means, axis=0)


def _grouped(columns: np.ndarray, clusters: Sequence[Hashable]) -> list[np.ndarray]:
    """The rows of each cluster."""
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    return [columns[rows] for rows in members.values()]


def _resampled_means(groups: list[np.ndarray], num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of two-stage bootstrap samples, `(num_resamples, d)`."""
    # Clusters of different sizes are padded to one array; `present` says which of the drawn places exist.
    sizes = np.array([len(group) for group in groups])
    padded = np.stack([np.pad(group, ((0, sizes.max() - len(group)), (0, 0))) for group in groups])
    drawn = rng.integers(len(groups), size=(num_resamples, len(groups)))
    # Rounded down, a uniform number times the size of a cluster is the index of one of its own values.
    members = (rng.random((*drawn.shape, sizes.max())) * sizes[drawn][..., None]).astype(int)
    present = np.arange(sizes.max()) < sizes[drawn][..., None]
    sums = (padded[drawn[..., None], members] * present[..., None]).sum((1, 2))
    return sums / present.sum((1, 2))[:, None]


def mean_pairwise_distance(images: Tensor) -> float:
    """Mean over all pairs of the root mean square difference of their pixels.

    Args:
        images: `(K, 3, H, W)` in [0, 1], K at least 2.

    Returns:
        In [0, 1]; 0 when all are equal.

    Example:
        >>> mean_pairwise_distance(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8))
        0.6666666865348816
    """
    if len(images) < 2:
        raise ValueError(f"Distances need at least two images, got {len(images)}.")
    flat = images.flatten(1).float()
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
