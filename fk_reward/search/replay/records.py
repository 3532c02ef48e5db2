"""Recorded rewards: what a reward said of every predicted image along plain trajectories, and how early it knew.

Letters of shapes: P prompts, S seeds of a prompt, T steps of a trajectory.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fk_reward.durable_files import naming_path, write_whole
from fk_reward.text import did_you_mean

Floats = NDArray[np.floating[Any]]

_RESERVED = ("prompts", "settings")
"""Arrays of a file that are no rewards."""
_NUM_DIMENSIONS = 3
MIN_STEPS = 2


@dataclass(frozen=True, eq=False)
class RewardRecords:
    """Rewards along plain trajectories: S seeds of each of P prompts, scored after each of T steps.

    Step t (from 0) holds the reward of the clean image that is predicted in that step of the scheduler, which is what
    a search is told at scoring step t; the last step holds the reward of the finished image. Prompt i and seed j are
    the same trajectory under every reward.

    Attributes:
        rewards: name -> `(P, S, T)` float32, finite.
        prompts: the P texts; empty where they are not known. Prompts of the same text depend on one another.
        settings: what the trajectories depend on, as JSON; empty where it is not known.

    Raises:
        ValueError: without a reward, for shapes that do not fit, fewer than two steps, or a number that is not finite.

    Example:
        >>> records = RewardRecords({"clipscore": np.zeros((2, 5, 20))})
        >>> records.shape
        (2, 5, 20)
    """

    rewards: Mapping[str, Floats]
    prompts: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("Records should hold at least one reward, an array (prompts, seeds, steps).")
        arrays = {name: np.asarray(values, dtype=np.float32) for name, values in self.rewards.items()}
        expected = next(iter(arrays.values())).shape
        for name, values in arrays.items():
            _check_array(name, values, expected)
        if self.prompts and len(self.prompts) != expected[0]:
            raise ValueError(f"There should be a text for each of {expected[0]} prompts, got {len(self.prompts)}.")
        vars(self).update(rewards=arrays, prompts=tuple(map(str, self.prompts)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """P, S and T."""
        num_prompts, num_seeds, num_steps = next(iter(self.rewards.values())).shape
        return num_prompts, num_seeds, num_steps

    @property
    def clusters(self) -> NDArray[np.int64]:
        """`(P,)`, equal numbers for prompts of the same text; a number of its own for each where no text is known."""
        if not self.prompts:
            return np.arange(self.shape[0])
        return np.unique(np.asarray(self.prompts), return_inverse=True)[1].astype(np.int64)

    def of(self, name: str) -> Floats:
        """`(P, S, T)`, the values of one reward.

        Raises:
            ValueError: an unknown name; the message lists the known ones.
        """
        if name not in self.rewards:
            hint = did_you_mean(name, self.rewards, limit=1)
            raise ValueError(f"The records hold no reward {name!r}.{hint} They hold {', '.join(self.rewards)}.")
        return self.rewards[name]

    def save(self, path: str | PathLike[str]) -> Path:
        """Write an `.npz` file: an array for each reward, `prompts` and `settings`.

        Returns:
            The path.

        Raises:
            ValueError: for a reward whose name is that of another array of the file.
            OSError: it names the path.
        """
        if taken := [name for name in self.rewards if name in _RESERVED]:
            raise ValueError(f"A reward cannot be called {taken[0]!r}: the file has another array of this name.")
        arrays = dict(self.rewards) | {"settings": np.asarray(json.dumps(self.settings))}
        arrays |= {"prompts": np.asarray(self.prompts)} if self.prompts else {}
        return write_whole(path, lambda file: _write_arrays(file, arrays))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RewardRecords:
        """Read an `.npz` file of `save`, or any other with an array `(P, S, T)` for each reward.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file; the message names it and what is wrong.
        """
        arrays = _read_arrays(Path(path))
        settings, prompts = (arrays.pop(name, None) for name in ("settings", "prompts"))
        try:
            return cls(
                arrays,
                () if prompts is None else prompts.tolist(),
                {} if settings is None else json.loads(str(settings)),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _check_array(name: str, values: Floats, expected: tuple[int, ...]) -> None:
    if values.ndim != _NUM_DIMENSIONS or 0 in values.shape or values.shape[-1] < MIN_STEPS:
        raise ValueError(
            f"{name} should be an array (prompts, seeds, steps) of at least {MIN_STEPS} steps, got {values.shape}."
        )
    if values.shape != expected:
        raise ValueError(f"All rewards should be of the same trajectories: {name} is {values.shape}, not {expected}.")
    if bad := np.argwhere(~np.isfinite(values)).tolist():
        prompt, seed, step = bad[0]
        raise ValueError(
            f"{name} is {values[prompt, seed, step]} at prompt {prompt}, seed {seed}, step {step}, and at "
            f"{len(bad) - 1} more places: expected finite numbers. Leave these prompts out."
        )


def _write_arrays(file: Any, arrays: Mapping[str, Any]) -> None:
    # not by np.savez(**arrays), whose own parameters could be names of rewards
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(values), allow_pickle=False)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with naming_path(path), np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (AttributeError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no file of recorded rewards (.npz, an array for each reward, without pickled objects): {error}"
        ) from error


def within_prompt_spread(finished: Floats) -> Floats:
    """Standard deviation of the finished rewards among the seeds of each prompt.

    Args:
        finished: `(P, S)`.

    Returns:
        `(P,)`, unbiased in its square; 1 for prompts whose seeds are all alike, so that one can divide by it.

    Example:
        >>> within_prompt_spread(np.array([[0.0, 2.0], [3.0, 3.0]])).round(3).tolist()
        [1.414, 1.0]
    """
    if finished.shape[1] == 1:
        return np.ones(len(finished))
    spread = finished.astype(np.float64).std(axis=1, ddof=1)
    # seeds that are alike differ in the last bits of their mean
    return np.where(spread > 1e-6 * np.abs(finished).max(axis=1), spread, 1.0)


def standardized(values: Floats) -> Floats:
    """Rewards in units of the within-prompt standard deviation of the finished ones, which have mean 0.

    Args:
        values: `(P, S, T)`, of which the last step is finished.

    Returns:
        `(P, S, T)` float64; each prompt by its own mean and spread.

    Example:
        >>> standardized(np.array([[[5.0, 1.0], [9.0, 3.0]]]))[0, :, -1].round(3).tolist()
        [-0.707, 0.707]
    """
    finished = values[:, :, -1].astype(np.float64)
    center = finished.mean(axis=1)[:, None, None]
    return (values - center) / within_prompt_spread(finished)[:, None, None]


def rank_correlations(values: Floats) -> Floats:
    """Spearman's rank correlation with the finished reward, within each prompt, after each step.

    Pooled over prompts it would flatter: which prompts are easy is known early.

    Args:
        values: `(P, S, T)`.

    Returns:
        `(P, T)` in [-1, 1]; 0 where all seeds are alike. Equal rewards share their mean rank.

    Example:
        >>> steps = np.array([[[1.0, 1.0], [3.0, 2.0], [2.0, 3.0]]])  # three seeds, two steps
        >>> rank_correlations(steps).round(3).tolist()
        [[0.5, 1.0]]
    """
    ranks = _mean_ranks(values)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    products = norms * norms[:, -1:]
    return (ranks * ranks[:, :, -1:]).sum(axis=1) / np.where(products > 0, products, 1.0)


def _mean_ranks(values: Floats) -> Floats:
    """`(P, S, T)`, ranks among the seeds: the mean of the first and the last place that a value could have."""
    ordered = np.sort(values, axis=1)
    ranks = np.empty(values.shape)
    for prompt, step in np.ndindex(values.shape[0], values.shape[2]):
        one, places = values[prompt, :, step], ordered[prompt, :, step]
        ranks[prompt, :, step] = np.searchsorted(places, one, "left") + np.searchsorted(places, one, "right")
    return 0.5 * ranks


class Knowledge(NamedTuple):
    """What the reward of a prediction says about that of the finished image, within a prompt.

    Attributes:
        step: of the scheduler, from 0.
        correlation: mean over prompts of the rank correlation with the finished reward.
        low: lower end of its 95 % interval, clustered by prompt.
        high: upper end.
        weight: slope of the regression of the finished reward on this one, at least 0: by how much an early reward
            should be shrunk. It is what `difference` potentials want as weight of this step.
    """

    step: int
    correlation: float
    low: float
    high: float
    weight: float


def knowledge(values: Floats, clusters: Sequence[int] | NDArray[np.int64]) -> list[Knowledge]:
    """How early a reward knows, step by step.

    Args:
        values: `(P, S, T)`.
        clusters: `(P,)`, as `RewardRecords.clusters`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> finished = rng.standard_normal((8, 100))
        >>> early = finished + rng.standard_normal((8, 100))  # as much noise as signal
        >>> [round(step.weight, 1) for step in knowledge(np.stack([early, finished], axis=2), range(8))]
        [0.5, 1.0]
    """
    correlations, weights = rank_correlations(values), regression_weights(values)
    intervals = [mean_interval(correlations[:, step], clusters) for step in range(values.shape[2])]
    means = correlations.mean(axis=0)
    return [
        Knowledge(step, float(means[step]), *interval, float(weights[step])) for step, interval in enumerate(intervals)
    ]


def regression_weights(values: Floats) -> Floats:
    """Slope of the finished reward on that of each step, within prompts: pooled covariance over pooled variance.

    Args:
        values: `(P, S, T)`. Each prompt counts by its own spread.

    Returns:
        `(T,)`, at least 0.
    """
    within = standardized(values)
    within = within - within.mean(axis=1, keepdims=True)
    variance = (within**2).sum(axis=(0, 1))
    covariance = (within * within[:, :, -1:]).sum(axis=(0, 1))
    return np.maximum(covariance / np.where(variance > 0, variance, 1.0), 0.0)


def mean_and_error(values: Floats, clusters: Sequence[int] | NDArray[np.int64]) -> tuple[float, float]:
    """Mean over prompts and its standard error, where prompts of a cluster depend on one another.

    Source: Cameron and Miller (2015), *A practitioner's guide to cluster-robust inference*, for a mean, with their
    correction for the number of clusters.

    Args:
        values: `(P,)`, one for each prompt.
        clusters: `(P,)`, the cluster of each.

    Returns:
        The error is infinite for a single cluster, which says nothing of its variation.

    Example:
        >>> mean_and_error(np.array([1.0, 3.0]), [0, 1]), mean_and_error(np.array([1.0, 3.0]), [0, 0])
        ((2.0, 1.0), (2.0, inf))
    """
    members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    residuals = np.bincount(members, weights=values - values.mean())
    number = len(residuals)
    if number == 1:
        return float(values.mean()), float("inf")
    error = np.sqrt(number / (number - 1) * (residuals**2).sum()) / len(values)
    return float(values.mean()), float(error)


def mean_interval(values: Floats, clusters: Sequence[int] | NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of the mean over prompts, by Student's t with one degree of freedom less than there are clusters.

    Args:
        values: `(P,)`, one for each prompt.
        clusters: `(P,)`, the cluster of each.

    Example:
        >>> mean_interval(np.array([1.0, 1.0, 1.0]), [0, 1, 2])
        (1.0, 1.0)
    """
    mean, error = mean_and_error(values, clusters)
    if np.isinf(error):
        return -np.inf, np.inf
    reach = error * _student_quantile(len(np.unique(np.asarray(clusters))) - 1)
    return mean - reach, mean + reach


def _student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (SciPy is an extra of this package)."""
    exact = {1: 12.7062, 2: 4.30265, 3: 3.18245}  # where the expansion is not good enough
    if freedom in exact:
        return exact[freedom]
    z = 1.959964
    # Abramowitz and Stegun (1964), 26.7.5
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
