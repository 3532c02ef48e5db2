"""Averages and their intervals, against formulas and by coverage; diversity."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch

from fk_reward.benchmarks.statistics import (
    clustered_bootstrap,
    log_log_slope,
    mean_and_error,
    mean_pairwise_distance,
    root_mean_square,
)


def test_mean_and_error_agree_with_scipy():
    values = np.random.default_rng(0).normal(size=50)
    mean, error = mean_and_error(values.tolist())
    assert (mean, error) == pytest.approx((values.mean(), scipy.stats.sem(values)))
    with pytest.raises(ValueError, match="two values"):
        mean_and_error([1.0])


def test_slope_agrees_with_scipy():
    x, y = np.array([2.0, 5, 9, 30]), np.array([3.0, 1, 0.8, 0.1])
    assert log_log_slope(x, y) == pytest.approx(scipy.stats.linregress(np.log(x), np.log(y)).slope)


def test_root_mean_square():
    assert root_mean_square([1.0, -7.0]) == 5.0


def half_width(interval):
    return (interval.high - interval.low) / 2


def test_independent_values_give_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    interval = clustered_bootstrap(values, range(400))
    expected = 1.96 * scipy.stats.sem(values)
    assert interval.estimate == pytest.approx(values.mean())
    assert half_width(interval) == pytest.approx(expected, rel=0.1)
    assert interval.low < interval.estimate < interval.high


def test_repeated_values_do_not_shorten_the_interval():
    """Each value four times over is no more information; a bootstrap that ignores clusters would halve the interval."""
    values = np.random.default_rng(1).normal(size=100)
    clusters = np.repeat(np.arange(100), 4)
    once = clustered_bootstrap(values, range(100))
    clustered = clustered_bootstrap(np.repeat(values, 4), clusters)
    ignoring = clustered_bootstrap(np.repeat(values, 4), range(400))
    assert half_width(clustered) == pytest.approx(half_width(once), rel=0.15)
    assert half_width(ignoring) < 0.6 * half_width(once)


def test_coverage_of_a_clustered_mean():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(150):
        values = rng.normal(size=(30, 1)) + 0.5 * rng.normal(size=(30, 3))
        interval = clustered_bootstrap(values.ravel(), np.repeat(np.arange(30), 3), num_resamples=400)
        hits += interval.low < 0.0 < interval.high
    assert hits / 150 > 0.88


def test_strata_count_equally_whatever_their_sizes():
    values, strata = [1.0] * 30 + [0.0] * 2, ["a"] * 30 + ["b"] * 2
    interval = clustered_bootstrap(values, range(32), strata=strata)
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_cluster_keeps_the_uncertainty_within_it():
    interval = clustered_bootstrap([0.0, 1.0] * 20, ["only"] * 40)
    assert half_width(interval) == pytest.approx(1.96 * 0.5 / 40**0.5, rel=0.2)


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=20)
    assert clustered_bootstrap(values, range(20), seed=1) == clustered_bootstrap(values, range(20), seed=1)


@pytest.mark.parametrize("arguments", [([], []), ([1.0], []), ([1.0], ["a"], ["s", "t"])])
def test_lengths_are_checked(arguments):
    values, clusters, *strata = arguments
    with pytest.raises(ValueError, match="one length"):
        clustered_bootstrap(values, clusters, strata=strata[0] if strata else None)


def test_agrees_with_scipy():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scipy.spatial.distance.pdist(images.flatten(1).numpy()).mean() / (3 * 8 * 8) ** 0.5
    assert mean_pairwise_distance(images) == pytest.approx(expected)


def test_copies_have_no_distance():
    assert mean_pairwise_distance(torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8)) == 0.0


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="two images"):
        mean_pairwise_distance(torch.zeros(1, 3, 8, 8))
