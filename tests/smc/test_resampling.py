"""Resampling schemes: unbiased, within their bounds, safe at the edges of the uniform and of floating point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.smc import resampling
from fk_reward.smc.resampling import RESAMPLERS

ALL = list(RESAMPLERS)
NEAREST = ["systematic", "ssp"]  # floor or ceiling of the expected count
WEIGHTS = [0.05, 0.3, 0.0, 0.15, 0.5]
BELOW_ONE = math.nextafter(1.0, 0.0)

log_weight_lists = st.lists(st.floats(-30, 30) | st.just(-math.inf), min_size=1, max_size=20).filter(
    lambda values: max(values) > -math.inf
)


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logs(weights):
    return torch.tensor(weights, dtype=torch.float64).log()


def exact_weights(log_weights):
    """Normalised weights by an implementation that shares nothing with ours."""
    values = np.asarray(log_weights, dtype=np.longdouble)
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def counts_of(ancestors, num_particles):
    return np.bincount(ancestors.numpy(), minlength=num_particles)


def repeated_counts(resampler, log_weights, *, num_samples, num_repeats):
    generator = make_generator()
    draws = (resampler(log_weights, num_samples, generator) for _ in range(num_repeats))
    return np.stack([counts_of(draw, len(log_weights)) for draw in draws])


def assert_unbiased(resampler, weights, *, num_samples, num_repeats=1500):
    """Mean counts within 5 standard errors of N W; the multinomial variance is the largest that any scheme may have."""
    counts = repeated_counts(resampler, logs(weights), num_samples=num_samples, num_repeats=num_repeats)
    expected = num_samples * np.asarray(weights)
    error = np.sqrt(expected * (1 - np.asarray(weights)) / num_repeats)
    assert (np.abs(counts.mean(0) - expected) <= 5 * error + 1e-9).all()


def freeze_uniform(monkeypatch, value):
    def rand(size, *, dtype, generator):
        return torch.full((size,), value, dtype=dtype)

    monkeypatch.setattr(resampling.torch, "rand", rand)


@pytest.mark.parametrize("num_samples", [1, 3, 5, 16])
@pytest.mark.parametrize("name", ALL)
def test_unbiased(name, num_samples):
    assert_unbiased(RESAMPLERS[name], WEIGHTS, num_samples=num_samples)


@pytest.mark.parametrize("name", ALL)
def test_counts_agree_with_numpy_choice(name):
    """Monte Carlo oracle: the average count of each particle agrees with numpy's own weighted draws."""
    rng, weights = np.random.default_rng(0), [0.1, 0.2, 0.7]
    oracle = np.bincount(rng.choice(3, size=200_000, p=weights), minlength=3) / 200_000
    counts = repeated_counts(RESAMPLERS[name], logs(weights), num_samples=10, num_repeats=1500).mean(0) / 10
    np.testing.assert_allclose(counts, oracle, atol=0.02)


def test_multinomial_covariance_is_that_of_independent_draws():
    weights = np.array([0.1, 0.2, 0.7])
    counts = repeated_counts(RESAMPLERS["multinomial"], logs(weights.tolist()), num_samples=10, num_repeats=6000)
    expected = 10 * (np.diag(weights) - np.outer(weights, weights))
    np.testing.assert_allclose(np.cov(counts.T), expected, atol=0.12)


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual", "ssp"])
def test_variance_is_below_the_multinomial_one(name):
    counts = {
        n: repeated_counts(RESAMPLERS[n], logs(WEIGHTS), num_samples=8, num_repeats=1000) for n in (name, "multinomial")
    }
    assert counts[name].var(0).sum() < 0.6 * counts["multinomial"].var(0).sum()


@pytest.mark.parametrize("name", ALL)
@given(log_weights=log_weight_lists, num_samples=st.integers(1, 30), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_properties(name, log_weights, num_samples, seed):
    tensor = torch.tensor(log_weights, dtype=torch.float64)
    before = tensor.clone()
    ancestors = RESAMPLERS[name](tensor, num_samples, make_generator(seed))
    assert ancestors.shape == (num_samples,)
    assert ancestors.dtype == torch.int64
    assert torch.equal(tensor, before), "the argument was changed"
    assert (ancestors.diff() >= 0).all()
    counts, expected = counts_of(ancestors, len(log_weights)), num_samples * exact_weights(log_weights)
    assert (counts[np.isneginf(log_weights)] == 0).all()
    if name in NEAREST:
        assert (np.abs(counts - expected) < 1 + 1e-6).all()
    if name == "stratified":
        assert (np.abs(counts - expected) < 2 + 1e-6).all()
    if name == "residual":
        assert (counts >= np.floor(expected - 1e-6)).all()
    repeated = RESAMPLERS[name](tensor, num_samples, make_generator(seed))
    assert torch.equal(ancestors, repeated)


@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0], [0.0, 0.3, 0.0, 0.7, 0.0], [0.0, *[0.1] * 10, 0.0], [1.0]])
def test_extreme_uniforms_never_draw_a_zero_weight(monkeypatch, name, uniform, weights):
    """searchsorted on the wrong side draws index 0 for a uniform of 0; a rounded sum below 1 draws index K."""
    freeze_uniform(monkeypatch, uniform)
    for num_samples in (1, 3, 7, 10):
        ancestors = RESAMPLERS[name](logs(weights), num_samples, make_generator())
        assert len(ancestors) == num_samples
        assert all(weights[k] > 0 for k in ancestors.tolist())


@pytest.mark.parametrize("name", ALL)
def test_float32_weights_whose_sum_stays_below_one(monkeypatch, name):
    """3 x 0.1 + ... in float32 sums to less than 1: a naive search returns K for the largest uniforms."""
    weights = torch.full((1000,), 1e-3, dtype=torch.float32)
    weights[-1] = 0.0
    freeze_uniform(monkeypatch, BELOW_ONE)
    ancestors = RESAMPLERS[name](weights.log(), 1000, make_generator())
    assert int(ancestors.max()) <= 998


def test_float16_and_bfloat16_log_weights():
    for dtype in (torch.float16, torch.bfloat16):
        for resampler in RESAMPLERS.values():
            ancestors = resampler(torch.tensor([0.0, -60000.0, 0.0]).to(dtype), 4, make_generator())
            assert counts_of(ancestors, 3)[1] == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("offset", [-1e5, 1e5, 1e300])
def test_a_constant_offset_changes_nothing(name, offset):
    log_weights = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    shifted = log_weights + offset if offset < 1e6 else torch.full((4,), offset, dtype=torch.float64)
    plain = log_weights if offset < 1e6 else torch.zeros(4)
    for seed in range(5):
        resampler = RESAMPLERS[name]
        assert torch.equal(resampler(plain, 9, make_generator(seed)), resampler(shifted, 9, make_generator(seed)))


@pytest.mark.parametrize("name", ALL)
def test_one_dominant_particle_takes_all(name):
    ancestors = RESAMPLERS[name](torch.tensor([-1e5, 1e5, 0.0]), 6, make_generator())
    assert ancestors.tolist() == [1] * 6


@pytest.mark.parametrize("name", ALL)
def test_one_particle(name):
    assert RESAMPLERS[name](torch.tensor([-3.0]), 4, make_generator()).tolist() == [0] * 4


@pytest.mark.parametrize("name", ["systematic", "residual", "ssp"])
def test_whole_counts_are_not_left_to_chance(name):
    for seed in range(50):
        ancestors = RESAMPLERS[name](logs([0.2, 0.4, 0.1, 0.3]), 10, make_generator(seed))
        assert counts_of(ancestors, 4).tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        ([-math.inf, -math.inf], "all -inf"),
        ([0.0, math.nan], "finite or -inf"),
        ([0.0, math.inf], "finite or -inf"),
        ([[0.0, 0.0]], "shape"),
    ],
)
def test_impossible_weights_raise(name, log_weights, message):
    with pytest.raises(ValueError, match=message):
        RESAMPLERS[name](torch.tensor(log_weights), 2, make_generator())


def test_ssp_expected_counts_do_not_depend_on_the_order():
    weights = np.array([0.07, 0.33, 0.11, 0.29, 0.2])
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        assert_unbiased(RESAMPLERS["ssp"], weights[order].tolist(), num_samples=5)


def test_ssp_counts_are_negatively_correlated():
    """Gerber, Chopin and Whiteley (2019): what convergence in any order rests on."""
    counts = repeated_counts(RESAMPLERS["ssp"], logs([0.15, 0.25, 0.35, 0.25]), num_samples=3, num_repeats=4000)
    covariance = np.cov(counts.T)
    assert (covariance[~np.eye(4, dtype=bool)] < 0.02).all()


def biased_to_the_first(log_weights, num_samples, generator):
    ancestors = RESAMPLERS["multinomial"](log_weights, num_samples, generator)
    ancestors[::8] = 0
    return ancestors


def ignores_the_weights(log_weights, num_samples, generator):
    return torch.randint(len(log_weights), (num_samples,), generator=generator)


@pytest.mark.parametrize("saboteur", [biased_to_the_first, ignores_the_weights])
def test_a_biased_resampler_is_caught(saboteur):
    with pytest.raises(AssertionError):
        assert_unbiased(saboteur, WEIGHTS, num_samples=16)
