"""Gradient-guided proposals: the target stays exact whatever the gradient is, as long as the ratio is kept."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from fk_reward import FKSteeringConfig, FKSteeringPipeline, steer
from fk_reward.rewards import Reward, RewardCard
from fk_reward.sampling.trace import SteeringTrace
from fk_reward.sampling.transitions import RepeatableStep, StepState
from fk_reward.search import GradientFKConfig, Moved
from fk_reward.search.base import forecast
from tests import tiny
from tests.sampling.scheduler_cases import CASES, initial_sample, make_scheduler, scaled_input, toy_model

NUM_STEPS, NUM_RUNS = 6, 2000
MEANS, SHARES, SPREAD = torch.tensor([-1.2, 1.0]), torch.tensor([0.6, 0.4]), 0.3
GRID = torch.linspace(-7, 7, 1401, dtype=torch.float64)
CONFIG = GradientFKConfig(
    num_particles=4,
    potential="difference",
    reward_scale=1.5,
    resample_start=0.3,
    resample_stop=0.7,
    num_resamples=2,
    ess_threshold=1.0,
    gradient_start=0.0,
    gradient_stop=1.0,
    max_shift=0.7,
)


def reward(x):
    return torch.sin(2 * x) - (x - 0.5).abs()


def scheduler():
    made = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    made.set_timesteps(NUM_STEPS)
    return made


def noise_pred(sample, scheduler, timestep):
    """The exact prediction for two modes."""
    alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(sample.dtype)
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    means, variance = MEANS.to(sample.dtype), a * a * SPREAD**2 + s * s
    shares = torch.softmax(SHARES.to(sample.dtype).log() - (sample - a * means) ** 2 / (2 * variance), -1)
    x0 = (shares * (means + a * SPREAD**2 / variance * (sample - a * means))).sum(-1, keepdim=True)
    return (sample - a * x0) / s


def gaussian(x, mean, scale):
    return torch.exp(-((x - mean) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))


def exact():
    """Evidence, tilted mean and tilted mass below 0 of what the stock chain draws, by propagating a density."""
    made, law = scheduler(), gaussian(GRID, 0.0, 1.0)
    width = GRID[1] - GRID[0]
    for place, timestep in enumerate(made.timesteps):
        output = noise_pred(GRID[:, None], made, timestep)
        means = made.step(output, timestep, GRID[:, None], eta=1.0, variance_noise=torch.zeros_like(output)).prev_sample
        if place == NUM_STEPS - 1:
            weights = law * width * torch.exp(CONFIG.reward_scale * reward(means[:, 0]))
            total = weights.sum()
            mass = weights[means[:, 0] < 0].sum() / total
            return float(total), float((weights * means[:, 0]).sum() / total), float(mass)
        moved = made.step(output, timestep, GRID[:, None], eta=1.0, variance_noise=torch.ones_like(output)).prev_sample
        law = (gaussian(GRID, means, (moved - means)) * (law * width)[:, None]).sum(0)
    return None


def with_gradient(factor, reward=reward):
    """A score whose gradient is that of the reward times a factor: what it says stays the same."""

    def score(x0_pred):
        values = reward(x0_pred[:, 0])
        return factor * values + (1 - factor) * values.detach()

    return score


def estimates(config, *, factor=1.0, transition=lambda own: own, reward=reward, seed=0):
    """Unbiased estimates of evidence, evidence x mean and evidence x mass: one of each prompt, (3, G)."""
    made, generator = scheduler(), torch.Generator().manual_seed(seed)
    population = config.population(NUM_RUNS, torch.Generator().manual_seed(seed + 1))
    sample = torch.randn(NUM_RUNS * config.num_particles, 1, generator=generator)
    own = config.transition(population)
    with torch.no_grad(), steer(made, population, with_gradient(factor, reward), transition=transition(own)) as records:
        for timestep in made.timesteps:
            output = noise_pred(sample, made, timestep)
            sample = made.step(output, timestep, sample, eta=1.0, generator=generator).prev_sample
    population.finish(reward(sample[:, 0]), log_ratio=records.log_ratio)
    evidence, x = population.log_evidence.exp(), sample[:, 0].view(NUM_RUNS, -1)
    parts = (torch.ones_like(x), x, (x < 0).float())
    return torch.stack([evidence * (population.weights * part).sum(1) for part in parts])


def deviations(found):
    """Distance from the exact numbers, in standard errors, of the three estimates."""
    evidence, mean, mass = exact()
    truth = torch.tensor([evidence, evidence * mean, evidence * mass], dtype=torch.float64)
    return ((found.mean(1) - truth) / (found.std(1) / NUM_RUNS**0.5)).abs()


def relative_variance(found):
    return float(found[0].var() / found[0].mean() ** 2)


def test_the_oracle_agrees_with_plain_runs():
    assert deviations(estimates(replace(CONFIG, gradient_strength=0.0, num_resamples=0))).max() < 3.5


@pytest.mark.parametrize("factor", [1.0, -1.0, 3.0], ids=["right", "opposite", "too-large"])
def test_the_target_is_exact_with_any_gradient(factor):
    assert deviations(estimates(CONFIG, factor=factor)).max() < 3.5


@pytest.mark.parametrize("factor", [1.0, -1.0], ids=["right", "opposite"])
def test_without_the_ratio_it_is_not(factor):
    def without_ratio(own):
        return lambda state, move, score: Moved(own(state, move, score).sample)

    assert deviations(estimates(CONFIG, factor=factor, transition=without_ratio)).max() > 8


def test_a_ratio_with_the_wrong_sign_is_noticed():
    def upside_down(own):
        def moved(state, move, score):
            made = own(state, move, score)
            return Moved(made.sample, None if made.log_ratio is None else -made.log_ratio)

        return moved

    assert deviations(estimates(CONFIG, transition=upside_down)).max() > 8


def test_the_right_gradient_lowers_the_variance_and_the_opposite_one_raises_it():
    plain, guided, misled = (
        relative_variance(estimates(replace(CONFIG, gradient_strength=strength), factor=factor, reward=lambda x: x))
        for strength, factor in ((0.0, 1.0), (1.0, 1.0), (1.0, -1.0))
    )
    assert guided < 0.8 * plain
    assert misled > 1.2 * plain


def test_a_strength_of_zero_is_fk_steering():
    config = GradientFKConfig(gradient_strength=0.0)
    kept = {name: value for name, value in config.to_dict().items() if hasattr(FKSteeringConfig(), name)}
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    outs = [
        FKSteeringPipeline(pipe, reward=Redness())(
            "a star", search=search, num_inference_steps=4, output_type="pt", generator=torch.Generator().manual_seed(0)
        )
        for search in (config, FKSteeringConfig(**kept))
    ]
    assert torch.equal(outs[0].images, outs[1].images)


def in_the_middle(name, kind):
    """A scheduler before its fifth step, where multistep solvers have a history."""
    made, arguments = make_scheduler(name, kind)
    sample = initial_sample(made, 3)
    for timestep in made.timesteps[:5]:
        output = toy_model(scaled_input(made, sample, timestep), timestep)
        state = StepState(4, 10, timestep, sample, output, made)
        if timestep == made.timesteps[4]:
            break
        sample = made.step(output, timestep, sample, generator=torch.Generator().manual_seed(1), **arguments)[0]
    return made, arguments, state


def move_of(name, kind, *, seed, per_row):
    """The step of a scheduler as a transition gets it, with noise of these seeds."""
    made, arguments, state = in_the_middle(name, kind)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(3)]

    def step(model_output, sample):
        generator = generators if per_row else generators[0]
        return made.step(model_output, state.timestep, sample, generator=generator, **arguments)

    return RepeatableStep(made, step, state), made


@pytest.mark.parametrize("per_row", [False, True], ids=["one-generator", "a-list"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_step_taken_apart_is_the_stock_step(name, kind, per_row):
    """The same sample, and with other noise the sample that the parts foretell."""
    with torch.no_grad():
        stock = move_of(name, kind, seed=5, per_row=per_row)[0]()
        move, made = move_of(name, kind, seed=5, per_row=per_row)
        drawn = move.drawn()
        other = move_of(name, kind, seed=6, per_row=per_row)[0].drawn()
    torch.testing.assert_close(drawn.sample, stock, rtol=0, atol=0)
    assert not drawn.sample.requires_grad
    torch.testing.assert_close(other.scale, drawn.scale)
    foretold = drawn.sample + drawn.scale * (other.noise - drawn.noise)
    torch.testing.assert_close(foretold, other.sample, rtol=1e-4, atol=1e-4)
    assert drawn.scale.abs().max() > 0 or name == "kdpm2-ancestral"
    kept = [v for value in vars(made).values() for v in (value if isinstance(value, list) else [value])]
    assert not any(isinstance(value, torch.Tensor) and value.requires_grad for value in kept)


def test_noise_that_cannot_be_told_apart_is_refused():
    made, _, state = in_the_middle("ddim", "epsilon")

    def step(model_output, sample):
        return (sample + torch.randn(sample.shape) + torch.randn(sample.shape),)

    with pytest.raises(ValueError, match="The step of DDIMScheduler draws noise of the shapes"):
        RepeatableStep(made, step, state).drawn()


class Redness(Reward):
    """Mean of the red channel."""

    card = RewardCard(name="redness", summary="red", differentiable=True)

    def score(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2))


class Blocked(Redness):
    """Says that it is differentiable, and is not."""

    def score(self, images, prompts):
        return super().score(images.detach(), prompts)


class Undefined(Redness):
    """A gradient of infinity."""

    def score(self, images, prompts):
        return (images[:, 0].mean(dim=(1, 2)) * 0).sqrt()


def wrapped(reward, maker=tiny.make_sd, scheduler=DDIMScheduler):
    pipe = maker()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return FKSteeringPipeline(pipe, reward=reward)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_in_a_pipeline_it_finds_redder_images(inference_mode):
    pipe, shared = wrapped(Redness()), {"num_inference_steps": 8, "output_type": "pt", "num_particles": 2}
    settings = {"reward_scale": 1000.0, "gradient_start": 0.0, "gradient_stop": 1.0, "num_resamples": 0}
    means = []
    for max_shift in (1e-6, 8.0):
        search = GradientFKConfig(max_shift=max_shift, **settings)
        with torch.inference_mode(inference_mode):
            out = pipe("a star", search=search, generator=torch.Generator().manual_seed(0), **shared)
        means.append(float(out.trace.steps[-1].rewards.mean()))
        assert not out.images.requires_grad
        assert out.trace.search == "fk-gradient"
    assert means[1] > means[0] + 0.003
    # the finished images, and those of the guided steps, of which the last one, without noise, is none
    assert out.trace.cost.decodes == out.trace.cost.reward_calls == 2 + 7 * 2
    assert out.trace.cost.gradients == 7 * 2
    assert "16 images decoded, 16 scored (14 with a backward pass)" in out.trace.summary()


def half_sdxl(*, wide):
    """An SDXL in float16, whose pipeline widens its autoencoder to decode; or whose autoencoder needs no widening."""
    pipe = tiny.make_sdxl().to(torch.float16)
    pipe.vae.register_to_config(force_upcast=wide)
    return pipe


def test_a_decoder_that_is_put_back_into_half_precision_has_its_gradient():
    """Its graph holds the float32 weights that it was computed with; hardly another gradient than in float16."""
    ends = []
    for wide in (True, False):
        pipe = wrapped(Redness(), functools.partial(half_sdxl, wide=wide))
        config = GradientFKConfig(num_particles=2, reward_scale=1000.0, gradient_start=0.0, max_shift=8.0)
        out = pipe(
            "a star", search=config, num_inference_steps=5, output_type="pt", generator=torch.Generator().manual_seed(0)
        )
        assert pipe.pipe.vae.dtype == torch.float16
        assert out.trace.cost.gradients > 0
        ends.append(out.trace.steps[-1].rewards)
    torch.testing.assert_close(*ends, rtol=0, atol=5e-3)


FORECASTS = {
    "defaults": ({}, (2,) * 6),
    "everywhere": ({"gradient_start": 0.0, "gradient_stop": 1.0}, (2,) * 9),
    # scored before the moves of steps 4, 6, 7 and 8, after which 3, 2, 1 and 1 of 4 are left
    "shrinking": ({"num_particles": 4, "final_particles": 1, "gradient_stop": 1.0}, (4, 4, 3, 3, 2, 1, 1)),
    "lambda of the first rewards": ({"reward_scale": "auto"}, (2,) * 4),
    "never scored": ({"reward_scale": "auto", "num_resamples": 0}, ()),
    "best of K": ({"num_resamples": 0}, (2,) * 6),
    "a single one": ({"num_particles": 1}, (1,) * 6),
    "no strength": ({"gradient_strength": 0.0}, ()),
    "no lambda": ({"reward_scale": 0.0}, ()),
}


@pytest.mark.parametrize("preview", [None, lambda latents: latents[:, :3].sigmoid()])
@pytest.mark.parametrize("case", FORECASTS)
def test_the_forecast_is_what_a_call_takes(case, preview):
    settings, guided = FORECASTS[case]
    config = GradientFKConfig(**{"num_particles": 2, "reward_scale": 50.0, **settings})
    expected = forecast(config, 10)
    assert expected.guided == guided
    pipe = wrapped(Redness())
    pipe.preview = preview
    seeds = torch.Generator().manual_seed(0)
    out = pipe(["a star", "a moon"], search=config, num_inference_steps=10, generator=seeds)
    cost = out.trace.cost
    assert cost.decodes == cost.reward_calls == 2 * expected.num_scored
    assert cost.gradients == 2 * sum(guided)
    assert cost.previews == (0 if preview is None else 2 * (expected.num_scored - expected.finished))
    assert cost.sample_steps == 2 * sum(expected.steps)
    assert SteeringTrace.from_json(out.trace.to_json()).cost == cost


def test_other_searches_take_no_gradient_also_of_a_reward_that_has_one():
    out = wrapped(Redness())("a star", num_particles=2, num_inference_steps=10)
    assert (out.trace.cost.decodes, out.trace.cost.gradients) == (10, 0)


def test_rewards_without_a_usable_gradient_are_refused():
    with pytest.raises(ValueError, match="'redder' is not differentiable, as its card says: use a differentiable one"):

        def redder(images, prompts):
            return images[:, 0].mean(dim=(1, 2))

        wrapped(redder)("a star", search="fk-gradient", reward_scale=10.0, num_inference_steps=4)
    with pytest.raises(ValueError, match="No gradient reaches the predicted clean sample"):
        wrapped(Blocked())("a star", search="fk-gradient", reward_scale=10.0, num_inference_steps=4)
    with pytest.raises(ValueError, match="gradient of the reward at step 1 is NaN or infinite for row 0"):
        wrapped(Undefined())("a star", search="fk-gradient", reward_scale=10.0, num_inference_steps=4)


def test_deterministic_schedulers_are_refused_even_for_a_single_particle():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot be steered"):
        wrapped(Redness(), scheduler=EulerDiscreteScheduler)("a star", search="fk-gradient", num_particles=1)
    with pytest.raises(ValueError, match="eta=0.0 is deterministic"):
        wrapped(Redness())("a star", search="fk-gradient", num_particles=1, eta=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_strength": -1.0}, "gradient_strength should be"),
        ({"max_shift": 0.0}, "max_shift should be"),
        ({"gradient_start": 0.7, "gradient_stop": 0.3}, r"gradient_stop should be in \[gradient_start = 0.7, 1\]"),
        ({"num_particles": 0}, "num_particles should be at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GradientFKConfig(**settings)


def test_settings_survive_a_dictionary():
    assert GradientFKConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert GradientFKConfig.from_json(CONFIG.to_json()) == CONFIG
    with pytest.raises(TypeError, match="the fields of FKSteeringConfig are"):
        FKSteeringConfig.from_dict(CONFIG.to_dict())


def test_a_budget_for_a_single_image_says_that_nothing_could_be_chosen():
    search = GradientFKConfig(reward_scale=10.0)
    trace = wrapped(Redness())("a star", search=search, budget=10, num_inference_steps=10).trace
    assert trace.cost.reward_calls == 1 + 6
    assert any("bought one image, of which nothing could be chosen" in note for note in trace.notes)
