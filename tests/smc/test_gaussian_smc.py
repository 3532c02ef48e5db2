"""The whole sampler against a tilted Gaussian in closed form, and broken samplers that must fail the same check."""

from __future__ import annotations

import math

import pytest
import torch

from examples.benchmarks.gaussian import QUANTITIES, GaussianProblem, estimate_tilt
from fk_reward import FKSteeringConfig
from fk_reward.benchmarks.statistics import log_log_slope, root_mean_square
from fk_reward.search import FKPopulation
from fk_reward.smc.resampling import RESAMPLERS, systematic

PROBLEM = GaussianProblem()
REWARD_SCALE = 2.0
STOP_REWARD = -0.8
TOLERANCE = {"mean": 0.03, "variance": 0.05, "log_evidence": 0.05}


def errors(*, num_particles=4000, num_runs=6, problem=PROBLEM, filter_type=FKPopulation, seed=0, **settings):
    """Average of the runs minus the exact value, for each quantity."""
    config = FKSteeringConfig(
        **{"potential": "difference", "reward_scale": REWARD_SCALE, "num_particles": num_particles} | settings
    )
    estimates = estimate_tilt(problem, config, num_runs=num_runs, seed=seed, filter_type=filter_type)
    exact = problem.tilted(config.reward_scale)
    return {q: float(getattr(estimates, q).mean()) - getattr(exact, q) for q in QUANTITIES}


def assert_close_to_closed_form(deviations, tolerance=None):
    for quantity, limit in (tolerance or TOLERANCE).items():
        assert abs(deviations[quantity]) < limit, f"{quantity} is off by {deviations[quantity]:+.4f}"


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
@pytest.mark.parametrize("resampling", list(RESAMPLERS))
def test_difference_potential(resampling, ess_threshold):
    assert_close_to_closed_form(errors(resampling=resampling, ess_threshold=ess_threshold))


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
@pytest.mark.parametrize("potential", ["max", "immediate"])
def test_other_potentials(potential, ess_threshold):
    assert_close_to_closed_form(errors(potential=potential, ess_threshold=ess_threshold))


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_sum_potential(ess_threshold):
    """Its intermediate targets are narrower than the final one: the last weights have heavy tails, so tolerate more."""
    tolerance = {"mean": 0.08, "variance": 0.06, "log_evidence": 0.2}
    assert_close_to_closed_form(errors(potential="sum", ess_threshold=ess_threshold, num_runs=12), tolerance)


def test_no_resampling_is_importance_sampling():
    assert_close_to_closed_form(errors(num_resamples=0))


def test_reward_scale_zero_is_the_unsteered_chain():
    mean, variance = PROBLEM.final_marginal()
    exact = PROBLEM.tilted(0.0)
    assert (exact.mean, exact.variance, exact.log_evidence) == pytest.approx((mean, variance, 0.0))
    assert_close_to_closed_form(errors(reward_scale=0.0))


def test_steering_moves_every_quantity_far_beyond_the_tolerance():
    plain, tilted = PROBLEM.tilted(0.0), PROBLEM.tilted(REWARD_SCALE)
    for quantity, limit in TOLERANCE.items():
        assert abs(getattr(tilted, quantity) - getattr(plain, quantity)) > 3 * limit


def test_closed_form_agrees_with_quadrature():
    mean, variance = PROBLEM.final_marginal()
    x = torch.linspace(-8, 10, 200_001, dtype=torch.float64)
    log_density = (
        -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance) + REWARD_SCALE * PROBLEM.reward(x)
    )
    density = log_density.exp()
    total = torch.trapezoid(density, x)
    tilted_mean = torch.trapezoid(x * density, x) / total
    tilted_variance = torch.trapezoid((x - tilted_mean) ** 2 * density, x) / total
    exact = PROBLEM.tilted(REWARD_SCALE)
    assert (exact.mean, exact.variance, exact.log_evidence) == pytest.approx(
        (float(tilted_mean), float(tilted_variance), float(total.log())), abs=1e-6
    )


def test_the_chain_approaches_the_data_as_the_steps_become_short():
    mean, variance = GaussianProblem(num_steps=1000).final_marginal()
    assert (mean, variance) == pytest.approx((1.0, 0.5), abs=0.01)


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_error_falls_like_one_over_root_k(resampling):
    problem, sizes = GaussianProblem(num_steps=10), [64, 512, 4096]
    exact, slopes = problem.tilted(REWARD_SCALE), []
    runs = []
    for size in sizes:
        config = FKSteeringConfig(
            num_particles=size, potential="difference", reward_scale=REWARD_SCALE, resampling=resampling
        )
        runs.append(estimate_tilt(problem, config, num_runs=24, seed=3))
    for quantity in QUANTITIES:
        rmse = [root_mean_square((getattr(run, quantity) - getattr(exact, quantity)).tolist()) for run in runs]
        slopes.append(log_log_slope(sizes, rmse))
    assert -0.7 < sum(slopes) / len(slopes) < -0.3


@pytest.mark.parametrize("potential", ["difference", "max"])
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_a_population_that_shrinks(potential, resampling):
    assert_close_to_closed_form(
        errors(num_particles=8000, final_particles=2000, num_runs=12, potential=potential, resampling=resampling)
    )


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_a_reward_that_ends_the_scoring(potential):
    """Reached by some of 4000 predictions in the middle of the run, as the next test shows."""
    assert_close_to_closed_form(errors(potential=potential, stop_reward=STOP_REWARD))


def test_the_end_of_the_scoring_comes_between_the_first_and_the_last_step():
    config = FKSteeringConfig(num_particles=4000, reward_scale=REWARD_SCALE, stop_reward=STOP_REWARD)
    seen = []

    class Watched(FKPopulation):
        def weigh(self, rewards, *, final=False, step=None, weight=1.0):
            super().weigh(rewards, final=final, step=step, weight=weight)
            seen.append((step, bool(self.stopped.any())))

    estimate_tilt(PROBLEM, config, num_runs=1, filter_type=Watched)
    steps = [step for step, _ in seen if step is not None]
    assert 1 <= len(steps) - 1 < len(config.scoring_steps(PROBLEM.num_steps)) - 1
    assert [stopped for _, stopped in seen[: len(steps)]] == [False] * (len(steps) - 1) + [True]


class KeepsTheFirst(FKPopulation):
    """Saboteur: the population shrinks by leaving out the last particles, whatever their weights."""

    def resample(self, num_left=None):
        self.log_weights = torch.zeros_like(self.log_weights)
        return super().resample(num_left)


class KeepsTheBest(FKPopulation):
    """Saboteur: the population shrinks to the best, which is no draw by weight."""

    def resample(self, num_left=None):
        self.log_weights = 5.0 * self.log_weights
        return super().resample(num_left)


class DropsWeights(FKPopulation):
    """Saboteur, the public FK code's adaptive mode: weights are forgotten at a step that does not resample."""

    def resample(self, num_left=None):
        ancestors = super().resample(num_left)
        self.log_weights = torch.zeros_like(self.log_weights)
        return ancestors


class NoTerminalCorrection(FKPopulation):
    """Saboteur: the final reward is treated as one more scoring step."""

    def weigh(self, rewards, *, final=False, step=None, weight=1.0):
        super().weigh(rewards, step=step)


class LosesTheAncestry(FKPopulation):
    """Saboteur: the path statistics stay where they are when the particles move."""

    def resample(self, num_left=None):
        path, applied = self._path, self._applied
        ancestors = super().resample(num_left)
        self._path, self._applied = path, applied
        return ancestors


@pytest.mark.parametrize(
    ("saboteur", "settings"),
    [
        (DropsWeights, {"ess_threshold": 0.5}),
        (NoTerminalCorrection, {"potential": "max"}),
        (NoTerminalCorrection, {"potential": "immediate"}),
        (LosesTheAncestry, {}),
        (LosesTheAncestry, {"potential": "max"}),
        (KeepsTheFirst, {"num_particles": 8000, "final_particles": 2000}),
        (KeepsTheBest, {"num_particles": 8000, "final_particles": 2000}),
    ],
)
def test_broken_particle_filter_is_caught(saboteur, settings):
    deviations = errors(filter_type=saboteur, **settings)
    with pytest.raises(AssertionError, match="is off by"):
        assert_close_to_closed_form(deviations)


def ignores_the_weights(log_weights, num_samples, generator):
    return systematic(torch.zeros_like(log_weights), num_samples, generator)


def prefers_the_first(log_weights, num_samples, generator):
    """Every fourth sample is the first particle."""
    ancestors = systematic(log_weights, num_samples, generator)
    ancestors[::4] = 0
    return ancestors


def sharpens_the_weights(log_weights, num_samples, generator):
    return systematic(1.2 * log_weights, num_samples, generator)


@pytest.mark.parametrize("saboteur", [ignores_the_weights, prefers_the_first, sharpens_the_weights])
@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_broken_resampler_is_caught(monkeypatch, saboteur, ess_threshold):
    monkeypatch.setitem(RESAMPLERS, "systematic", saboteur)
    deviations = errors(ess_threshold=ess_threshold)
    with pytest.raises(AssertionError, match="is off by"):
        assert_close_to_closed_form(deviations)
