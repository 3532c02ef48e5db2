"""GLASS transitions: their law against closed forms, steered targets, and the denoiser's calls of real pipelines."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fk_reward import FKSteeringConfig, FKSteeringPipeline, steer
from fk_reward.pipelines import FlowMatchGLASSScheduler, FlowMatchSDEScheduler
from fk_reward.sampling.flow_match_glass import _Transition
from fk_reward.sampling.stochasticity import adds_noise_now, noise_levels, require_stochastic, transition_starts
from fk_reward.search import BeamSearch, Pruning, RolloverBudget
from scripts.scheduler_table import MODE, SPREAD, Row, law, posterior_mean
from tests import tiny
from tests.sampling.test_flow_match_sde import LEVELS

CORRELATIONS = [0.0, 0.2, 0.4, 0.8, "ddpm"]


@pytest.mark.parametrize(("config", "timesteps"), LEVELS)
def test_transitions_begin_at_the_levels_of_the_model(config, timesteps):
    own = FlowMatchEulerDiscreteScheduler(**config)
    scheduler = FlowMatchGLASSScheduler.from_config(own.config, num_inner_steps=3)
    for one in (own, scheduler):
        one.set_timesteps(**timesteps)
    starts = list(scheduler.transition_starts)
    assert len(scheduler.timesteps) == len(own.timesteps)  # as many calls of the denoiser as the ODE makes
    torch.testing.assert_close(scheduler.sigmas[starts], own.sigmas[starts])
    torch.testing.assert_close(scheduler.timesteps[starts], own.timesteps[starts])
    assert noise_levels(scheduler).equal(noise_levels(own))


def test_a_remainder_is_shared_out():
    scheduler = FlowMatchGLASSScheduler(num_inner_steps=4)
    scheduler.set_timesteps(10)
    assert scheduler.transition_starts == (0, 3, 6)
    assert transition_starts(scheduler, 10) == (0, 3, 6)
    scheduler.set_begin_index(3)
    assert transition_starts(scheduler, 7) == (0, 3)


def test_with_the_ddpm_correlation_levels_end_where_the_next_transition_begins():
    """x_t' alone says then what x_t and w say: the level at the end of a transition is that of x_t'."""
    own = np.array([0.9, 0.7, 0.55, 0.4])
    assert _Transition(own, (1 - 0.9) * 0.4 / (0.9 * (1 - 0.4))).levels[-1] == pytest.approx(0.4)
    assert _Transition(own, 0.2).levels[-1] < 0.4  # and below, where x_t says something besides


def test_one_inner_step_with_the_ddpm_correlation_is_sde_dpm_solver():
    """First-order SDE-DPM-Solver++ as `FlowMatchSDEScheduler` makes it, which has Diffusers' own as its oracle."""
    scheduler = FlowMatchGLASSScheduler(shift=3.0, correlation="ddpm", num_inner_steps=1)
    scheduler.set_timesteps(6)
    sample = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    for index, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(index))
        stock = FlowMatchSDEScheduler(shift=3.0)
        stock.set_timesteps(6)
        stock.set_begin_index(index)
        expected = stock.step(output, timestep, sample, generator=torch.Generator().manual_seed(9)).prev_sample
        sample = scheduler.step(output, timestep, sample, generator=torch.Generator().manual_seed(9)).prev_sample
        torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)


def gaussian_velocity(sample, sigma, *, mean, spread):
    """The exact velocity for data from N(mean, spread²)."""
    alpha = 1 - sigma
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    return (sample - (mean + gain * (sample - alpha * mean))) / sigma


def kernel(scheduler, x_t, number, *, mean=0.7, spread=0.5):
    """One transition from given samples with the exact denoiser of a Gaussian."""
    first = scheduler.transition_starts[number]
    last = (*scheduler.transition_starts, len(scheduler.timesteps))[number + 1]
    scheduler.set_begin_index(first)
    generator, sample = torch.Generator().manual_seed(0), x_t
    for place in range(first, last):
        output = gaussian_velocity(sample, float(scheduler.sigmas[place]), mean=mean, spread=spread)
        sample = scheduler.step(output, scheduler.timesteps[place], sample, generator=generator).prev_sample
    return sample


def exact_kernel(x_t, level, following, correlation, *, mean=0.7, spread=0.5):
    """Mean and variance of x_t' | x_t: the joint law of x_t and x_t' is Gaussian, and conditioned as such."""
    a, b = 1 - level, 1 - following
    variance, covariance = a**2 * spread**2 + level**2, a * b * spread**2 + correlation * level * following
    gain = covariance / variance
    return b * mean + gain * (x_t - a * mean), b**2 * spread**2 + following**2 - gain * covariance


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_transition_has_the_law_that_the_correlation_says(correlation, number):
    """From pure noise, in the middle, and to the clean sample; 100 inner steps leave no error of their own."""
    scheduler = FlowMatchGLASSScheduler(shift=2.0, correlation=correlation, num_inner_steps=100)
    scheduler.set_timesteps(400)
    levels = [*scheduler.sigmas[list(scheduler.transition_starts)].tolist(), 0.0]
    level, following = levels[number : number + 2]
    rho = (1 - level) * following / (level * (1 - following)) if correlation == "ddpm" else correlation
    for at in (-1.0, 1.5):
        moved = kernel(scheduler, torch.full((40_000, 1), at), number).double()
        mean, variance = exact_kernel(at, level, following, rho)
        assert float(moved.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000) + 0.003)
        assert float(moved.var()) == pytest.approx(variance, rel=0.04)
        scheduler.set_timesteps(400)


def mixture_error(correlation, num_steps=50):
    settings = {"shift": 3.0, "correlation": correlation}
    return law(Row(FlowMatchGLASSScheduler, settings, kinds=(None,)), None, num_steps, size=20_000)


@pytest.mark.parametrize("correlation", [0.2, 0.4, 0.8])
def test_the_marginals_of_a_mixture_are_kept(correlation):
    """Within 3 % of the spread within a mode (standard error .5 %), and half of the samples in each."""
    for num_steps in (20, 50):
        error, mass = mixture_error(correlation, num_steps)
        assert abs(error) < 0.03
        assert mass == pytest.approx(0.5, abs=0.015)


def test_looks_that_are_not_weighed_by_their_precision_fail_the_same_check(monkeypatch):
    def plain_mean(self, place, outer, inner):
        if place + 2 == len(self.levels):
            return self._gain * outer + self._scale * inner
        return (outer + inner) / 2

    monkeypatch.setattr(_Transition, "after", plain_mean)
    assert abs(mixture_error(0.4)[0]) > 0.06


def test_noise_of_the_wrong_size_fails_the_same_check(monkeypatch):
    original = _Transition.after
    monkeypatch.setattr(
        _Transition, "after", lambda self, place, outer, inner: original(self, place, outer, 1.1 * inner)
    )
    assert abs(mixture_error(0.4)[0]) > 0.1


# steered targets on the mixture

LAMBDA, NUM_RUNS = 1.5, 1500
GRID = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
STEERED = FKSteeringConfig(
    num_particles=4,
    potential="difference",
    reward_scale=LAMBDA,
    ess_threshold=1.0,
    resample_start=0.3,
    resample_stop=0.9,
    num_resamples=3,
)


def reward(x):
    return torch.sin(1.5 * x) - 0.4 * (x - 0.5).abs()


def exact_target():
    """Evidence, and tilted mass above 0, by quadrature."""
    prior = sum(torch.exp(-((GRID - mode) ** 2) / (2 * SPREAD**2)) for mode in (-MODE, MODE))
    tilted = prior * torch.exp(LAMBDA * reward(GRID))
    return float(tilted.sum() / prior.sum()), float(tilted[GRID > 0].sum() / tilted.sum())


def estimates(correlation, *, potential="difference", finished=reward):
    """Unbiased estimates of evidence and evidence x mass, one of each prompt, `(2, G)`."""
    scheduler = FlowMatchGLASSScheduler(shift=3.0, correlation=correlation)
    scheduler.set_timesteps(40)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(NUM_RUNS * 4, 1, generator=generator)
    config = FKSteeringConfig(**{**vars(STEERED), "potential": potential})
    population = config.population(NUM_RUNS, torch.Generator().manual_seed(1))
    with steer(scheduler, population, lambda x0_pred: reward(x0_pred[:, 0])) as records:
        for place, timestep in enumerate(scheduler.timesteps):
            sigma = float(scheduler.sigmas[place])
            output = (sample - posterior_mean(sample, 1 - sigma, sigma)) / sigma
            sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
    assert [record.step for record in records] == [12, 24, 32]  # beginnings of transitions 3, 6 and 8 of 10
    population.finish(finished(sample[:, 0]))
    above = (sample[:, 0] > 0).view(NUM_RUNS, 4)
    evidence = population.log_evidence.exp()
    return torch.stack([evidence, evidence * (population.weights * above).sum(1)])


def deviations(found):
    evidence, mass = exact_target()
    truth = torch.tensor([evidence, evidence * mass], dtype=torch.float64)
    return ((found.mean(1) - truth) / (found.std(1) / NUM_RUNS**0.5)).abs().max()


@pytest.mark.parametrize("correlation", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("potential", ["difference", "max"])
def test_the_steered_target_is_that_of_the_mixture(correlation, potential):
    assert deviations(estimates(correlation, potential=potential)) < 3.5


def test_a_wrong_terminal_reward_is_noticed():
    assert deviations(estimates(0.4, finished=lambda x: reward(x + 0.1))) > 5


# in a loop, and in pipelines


def test_searches_count_transitions():
    scheduler = FlowMatchGLASSScheduler(num_inner_steps=3)
    scheduler.set_timesteps(12)
    config = Pruning(num_particles=4, keep=(2, 1), at=(0.5, 0.75))
    sample, sizes = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), []
    with steer(scheduler, config.population(), lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))) as records:
        for timestep in scheduler.timesteps:
            sizes.append(len(sample))
            sample = scheduler.step(torch.tanh(sample), timestep, sample, generator=torch.Generator()).prev_sample
    assert [record.step for record in records] == [6, 9]  # transitions 2 and 3 of 4
    assert sizes == [4] * 7 + [2] * 3 + [1] * 2


def test_noise_is_drawn_where_transitions_begin():
    scheduler = FlowMatchGLASSScheduler(num_inner_steps=2)
    scheduler.set_timesteps(4)
    require_stochastic(scheduler)
    sample, draws = torch.ones(1, 1, 2, 2), []
    for timestep in scheduler.timesteps:
        draws.append(adds_noise_now(scheduler))
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample
    assert draws == [True, False, True, False]


SEARCHES = [
    FKSteeringConfig(num_particles=3, num_resamples=2, reward_scale=50.0),
    BeamSearch(num_particles=1, num_proposals=3),
]
MODELS = {"sd3": tiny.make_sd3, "flux": tiny.make_flux}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("search", SEARCHES)
def test_pipelines_call_the_denoiser_as_often_as_the_ode(make, search):
    def brightness(images, prompts):
        return images.mean(dim=(1, 2, 3))

    arguments = {"num_inference_steps": 8, "height": 16, "width": 16, "guidance_scale": 1.0}
    ode = FKSteeringPipeline(make(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)), reward=brightness)
    plain = ode("a dog", search="best-of-n", num_particles=3, generator=torch.Generator().manual_seed(0), **arguments)
    pipe = FKSteeringPipeline(make(scheduler=FlowMatchGLASSScheduler(shift=3.0, num_inner_steps=2)), reward=brightness)
    runs = [pipe("a dog", search=search, generator=torch.Generator().manual_seed(0), **arguments) for _ in range(2)]
    assert runs[0].trace.num_model_calls == plain.trace.num_model_calls == 8
    assert all(step.step % 2 == 0 for step in runs[0].trace.steps[:-1])
    assert len(runs[0].trace.steps) > 1
    assert torch.equal(runs[0].rewards, runs[1].rewards)
    assert pipe.scheduler.transition_starts == ()  # a call leaves the scheduler as it was


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_one_particle_is_the_stock_pipeline(make):
    pipe = make(scheduler=FlowMatchGLASSScheduler(shift=3.0, num_inner_steps=2))
    arguments = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "pt"}
    torch.manual_seed(0)  # the calls of SD3 and Flux do not pass a generator on to the scheduler
    stock = pipe("a dog", **arguments).images
    steered = FKSteeringPipeline(pipe, reward=lambda images, prompts: images.mean(dim=(1, 2, 3)))
    torch.manual_seed(0)
    assert torch.equal(steered("a dog", num_particles=1, **arguments).images, stock)


# what it refuses


@pytest.mark.parametrize("correlation", [1.0, -0.1, "ddim", None])
def test_correlations_that_are_none(correlation):
    with pytest.raises(ValueError, match=r"in \[0, 1\) or 'ddpm'"):
        FlowMatchGLASSScheduler(correlation=correlation)


def test_inverted_levels_are_refused():
    with pytest.raises(ValueError, match="Mochi"):
        FlowMatchGLASSScheduler(invert_sigmas=True)


def test_a_run_inside_a_transition_is_refused():
    scheduler = FlowMatchGLASSScheduler(num_inner_steps=2)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    sample = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="cannot begin at step 1"):
        scheduler.step(sample, scheduler.timesteps[1], sample)


def test_searches_that_draw_single_steps_again_are_refused_by_name():
    scheduler = FlowMatchGLASSScheduler(num_inner_steps=2)
    scheduler.set_timesteps(4)
    sample = torch.zeros(1, 1, 2, 2)
    with steer(scheduler, RolloverBudget(num_particles=1).population(), lambda x0_pred: x0_pred.mean(dim=(1, 2, 3))):
        with pytest.raises(ValueError, match="RolloverPopulation would change a single one: use FlowMatchSDE"):
            scheduler.step(sample, scheduler.timesteps[0], sample)


def test_it_is_saved_and_loaded(tmp_path):
    FlowMatchGLASSScheduler(shift=3.0, correlation="ddpm", num_inner_steps=5).save_pretrained(tmp_path)
    loaded = FlowMatchGLASSScheduler.from_pretrained(tmp_path)
    assert (loaded.config.shift, loaded.config.correlation, loaded.config.num_inner_steps) == (3.0, "ddpm", 5)
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path).config.shift == 3.0
