"""Look-ahead predictions in a hand-written loop: their steps, their cost, and the target of FK steering with them."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
)
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

from fk_reward import steer
from fk_reward.sampling.lookahead import ConsistencyPrediction, LookAhead, coarse_places
from fk_reward.sampling.transitions import StepState
from fk_reward.sampling.x0_prediction import alpha_sigma, predict_x0
from fk_reward.search.budget import sample_steps
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model
from tests.steering_configs import early

AHEAD = [case for case in CASES if not case.values[0].startswith("kdpm2")]  # which asks twice a step


def state_of(scheduler, place, seed=0):
    """Before a step: the samples that the scheduler's own steps have led to, and its model output there."""
    sample, generator = initial_sample(scheduler, 2, seed), torch.Generator().manual_seed(seed)
    for timestep in scheduler.timesteps[:place]:
        output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
    timestep = scheduler.timesteps[place]
    output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
    return StepState(place, len(scheduler.timesteps), timestep, sample, output, scheduler)


@pytest.mark.parametrize(("name", "kind"), AHEAD)
def test_one_step_is_the_prediction_and_the_scheduler_stays_as_it_is(name, kind):
    scheduler, _ = make_scheduler(name, kind)
    state = state_of(scheduler, 4)
    one_step, before = state.x0_pred(), dict(vars(scheduler))
    assert torch.equal(LookAhead(1)(state, None), one_step)
    asked = []

    def denoise(sample, timestep):
        asked.append(float(timestep))
        return toy_model(scaled_input(scheduler, sample, timestep), timestep)

    ahead = LookAhead(3)(state, denoise)
    assert asked == [float(scheduler.timesteps[place]) for place in (6, 8)]
    assert ahead.dtype == one_step.dtype
    assert ahead.isfinite().all()
    assert not torch.equal(ahead, one_step)
    assert vars(scheduler).keys() == before.keys()
    assert all(vars(scheduler)[key] is value for key, value in before.items())


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_all_steps_that_are_left_are_the_scheduler_itself(cls):
    """Of a deterministic scheduler of first order, run to its end."""
    scheduler = cls(**({} if cls is FlowMatchEulerDiscreteScheduler else {"timestep_spacing": "trailing"}))
    if cls is DDIMScheduler:
        scheduler.register_to_config(clip_sample=False)
    scheduler.set_timesteps(8)
    state = state_of(scheduler, 3)

    def denoise(sample, timestep):
        return toy_model(scaled_input(scheduler, sample, timestep), timestep)

    ahead, sample = LookAhead(20)(state, denoise), state.sample
    for timestep in scheduler.timesteps[3:]:
        x0_pred = predict_x0(scheduler, denoise(sample, timestep), timestep, sample)
        sample = scheduler.step(denoise(sample, timestep), timestep, sample).prev_sample
    torch.testing.assert_close(ahead, x0_pred, rtol=1e-4, atol=1e-4)


def test_a_perfect_denoiser_says_the_same_at_every_level():
    """Its noise prediction points at one clean sample, which a look-ahead of any length finds."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    clean = torch.linspace(-1, 1, 4).view(1, 1, 2, 2)

    def denoise(sample, timestep):
        alpha, sigma = alpha_sigma(scheduler, timestep)
        return (sample - alpha * clean) / sigma

    sample = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    state = StepState(0, 10, scheduler.timesteps[0], sample, denoise(sample, scheduler.timesteps[0]), scheduler)
    for number in (1, 2, 5):
        torch.testing.assert_close(LookAhead(number)(state, denoise), clean, rtol=0, atol=1e-4)


def test_half_precision_is_computed_in_float32():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    state, seen = state_of(scheduler, 5), []
    half = StepState(5, 10, state.timestep, state.sample.half(), state.model_output.half(), scheduler)

    def denoise(sample, timestep):
        seen.append(sample.dtype)
        return toy_model(sample.float(), timestep).to(sample.dtype)

    exact = LookAhead(3)(state, lambda sample, timestep: toy_model(sample, timestep))
    rounded = LookAhead(3)(half, denoise)
    assert rounded.dtype == torch.float16
    assert seen == [torch.float16] * 2
    torch.testing.assert_close(rounded.float(), exact, rtol=1e-2, atol=1e-2)


def test_places_are_equal_parts_of_what_is_left():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    places = [
        coarse_places(scheduler, scheduler.timesteps[place], number) for place, number in ((0, 4), (6, 2), (19, 3))
    ]
    assert places == [[0, 5, 10, 15], [6, 13], [19]]
    twice = PNDMScheduler(skip_prk_steps=True)
    twice.set_timesteps(10)  # its second and third timestep are the same
    chosen = [float(twice.timesteps[place]) for place in coarse_places(twice, twice.timesteps[0], 10)]
    assert chosen == sorted(set(twice.timesteps.tolist()), reverse=True)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (HeunDiscreteScheduler(), "asks the denoiser several times a step"),
        (IPNDMScheduler(), "does not tell the predicted clean sample"),
    ],
)
def test_schedulers_without_coarse_steps(scheduler, message):
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} has no look-ahead: .*{message}"):
        coarse_places(scheduler, scheduler.timesteps[0], 2)


def test_a_model_has_to_be_there():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    for prediction in (LookAhead(2), ConsistencyPrediction()):
        with pytest.raises(ValueError, match=r"pass steer\(..., denoise=...\)"):
            prediction(state_of(scheduler, 0), None)
    for number, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="lookahead should be"):
            LookAhead(number)


# a mixture on a line, drawn by its exact reverse chain, so that the target of FK steering is known
MEANS, SHARES, VARIANCE, SCALE, STEPS = torch.tensor([1.2, -1.5]), torch.tensor([0.7, 0.3]), 0.2, 1.2, 12

CONFIG = early(num_particles=4, potential="difference", reward_scale=SCALE, resample_start=0.3, num_resamples=3)


def reward(x):
    return -(x + 1.0).abs() + 0.8 * (x < 0)


class ExactChain(DDPMScheduler):
    """Draws from p(x_{t-1} | x_t) of the mixture: first the mode, then the Gaussian of that mode."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        now, before = self.alphas_cumprod[timestep], self.previous_timestep(timestep)
        prev = self.alphas_cumprod[before] if before >= 0 else torch.tensor(1.0)
        mean = MEANS[torch.multinomial(shares_of(sample, now), 1, generator=generator)]
        ratio, prior = now / prev, prev * VARIANCE + 1 - prev
        precision = 1 / prior + ratio / (1 - ratio)
        centre = (prev.sqrt() * mean / prior + ratio.sqrt() * sample / (1 - ratio)) / precision
        noise = torch.randn(sample.shape, generator=generator)
        return DDPMSchedulerOutput(prev_sample=centre + precision**-0.5 * noise)


def shares_of(sample, alpha_bar):
    spread = alpha_bar * VARIANCE + 1 - alpha_bar
    return torch.softmax(SHARES.log() - (sample - alpha_bar.sqrt() * MEANS) ** 2 / (2 * spread), 1)


def noise_of(scheduler, sample, timestep):
    """The exact noise prediction."""
    alpha_bar = scheduler.alphas_cumprod[timestep]
    alpha, spread = alpha_bar.sqrt(), alpha_bar * VARIANCE + 1 - alpha_bar
    posterior = MEANS + alpha * VARIANCE / spread * (sample - alpha * MEANS)
    x0 = (shares_of(sample, alpha_bar) * posterior).sum(1, keepdim=True)
    return (sample - alpha * x0) / (1 - alpha_bar).sqrt()


def run(num_runs, prediction, *, correct=True):
    """Evidence of each run, and the share of x < 0 by weight, of the tilted law."""
    scheduler = ExactChain(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    generator, total = torch.Generator().manual_seed(0), 4 * num_runs
    mode = torch.multinomial(SHARES, total, replacement=True, generator=generator)
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    spread = (alpha_bar * VARIANCE + 1 - alpha_bar).sqrt()
    sample = alpha_bar.sqrt() * MEANS[mode, None] + spread * torch.randn(total, 1, generator=generator)
    population = CONFIG.population(num_runs, torch.Generator().manual_seed(1))

    def denoise(sample, timestep):
        return noise_of(scheduler, sample, timestep)

    with steer(scheduler, population, lambda x0: reward(x0[:, 0]), prediction=prediction, denoise=denoise) as records:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(denoise(sample, timestep), timestep, sample, generator=generator).prev_sample
    # a saboteur leaves the rewards of the last predictions in the weights
    final = reward(sample[:, 0]) if correct else records[-1].rewards.flatten()
    population.finish(final)
    evidence = population.log_evidence.exp()
    left = (population.weights * (sample.view(num_runs, 4) < 0)).sum(1)
    return evidence, float((evidence * left).sum() / evidence.sum()), records.sample_steps


def law():
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    modes = SHARES.double() * torch.exp(-((x[:, None] - MEANS.double()) ** 2) / (2 * VARIANCE))
    tilted = modes.sum(1) / math.sqrt(2 * math.pi * VARIANCE) * torch.exp(SCALE * reward(x)) * (x[1] - x[0])
    return float(tilted.sum()), float(tilted[x < 0].sum() / tilted.sum())


def errors(evidence, left):
    """How far evidence and share are from the law; the first in standard errors."""
    expected, share = law()
    error = float(evidence.std()) / math.sqrt(len(evidence))
    return abs(float(evidence.mean()) - expected) / error, abs(left - share)


@pytest.mark.parametrize("prediction", [LookAhead(1), LookAhead(3), ConsistencyPrediction()], ids=["1", "3", "adapter"])
def test_fk_steering_keeps_its_target(prediction):
    evidence, left, num_samples = run(2500, prediction)
    in_errors, of_share = errors(evidence, left)
    assert in_errors < 3
    assert of_share < 0.01
    lookahead = getattr(prediction, "num_steps", "adapter")
    assert num_samples == 2500 * sample_steps(CONFIG, STEPS, lookahead=lookahead)


def test_a_missing_correction_fails_the_same_check():
    in_errors, of_share = errors(*run(2500, LookAhead(3), correct=False)[:2])
    assert in_errors > 3
    assert of_share > 0.015
