"""Pruning: the best go on at each cut, and end as they would have ended alone."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fk_reward import FKSteeringPipeline, steer
from fk_reward.search import Pruning
from tests import tiny
from tests.sampling.scheduler_cases import initial_sample, scaled_input, toy_model

CONFIG = Pruning(num_particles=6, keep=(4, 2), at=(0.3, 0.6))
SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}, {}),
    "ddim-eta-1": (DDIMScheduler, {"clip_sample": False}, {"eta": 1.0}),
    "dpm-solver": (DPMSolverMultistepScheduler, {}, {}),
    "euler": (EulerDiscreteScheduler, {}, {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}, {}),
    "heun": (HeunDiscreteScheduler, {}, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}, {}),
    "unipc": (UniPCMultistepScheduler, {}, {}),
}


def score(x0_pred):
    return x0_pred.mean(dim=(1, 2, 3))


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def generators(number):
    return [torch.Generator().manual_seed(40 + index) for index in range(number)]


def toy_run(name, population, sample, noise):
    """A loop with a denoiser that treats each row alone, and a generator for each row."""
    kind, settings, arguments = SCHEDULERS[name]
    scheduler = kind(**settings)
    scheduler.set_timesteps(10)
    takes_generator = name not in ("dpm-solver", "heun", "pndm", "unipc")
    with steer(scheduler, population, score) as records:
        for timestep in scheduler.timesteps:
            output = toy_model(scaled_input(scheduler, sample, timestep), timestep)
            extra = {**arguments, "generator": noise} if takes_generator else arguments
            sample = scheduler.step(output, timestep, sample, **extra).prev_sample
    return sample, records


@pytest.mark.parametrize("name", SCHEDULERS)
def test_survivors_equal_the_same_starts_alone_bit_for_bit(name):
    kind, settings, _ = SCHEDULERS[name]
    scheduler = kind(**settings)
    scheduler.set_timesteps(10)
    starts = initial_sample(scheduler, 6)
    final, records = toy_run(name, CONFIG.population(), starts, generators(6))
    assert [record.rewards.shape[1] for record in records] == [6, 4]
    left = records[0].ancestors[0][records[1].ancestors[0]].tolist()
    assert len(set(left)) == 2
    for row, start in zip(final, left, strict=True):
        alone, _ = toy_run(
            name, Pruning(num_particles=1, keep=(), at=()).population(), starts[[start]], [generators(6)[start]]
        )
        assert torch.equal(row, alone[0])


def test_two_prompts_choose_their_own():
    starts = initial_sample(DDIMScheduler(), 12)
    together, records = toy_run("ddim", CONFIG.population(2), starts, generators(12))
    for group in (0, 1):
        rows = slice(6 * group, 6 * group + 6)
        alone, _ = toy_run("ddim", CONFIG.population(), starts[rows], generators(12)[rows])
        assert torch.equal(together[2 * group : 2 * group + 2], alone)
    assert records[0].ancestors.shape == (2, 4)


@pytest.mark.parametrize(
    ("kind", "arguments"), [(DDIMScheduler, {"eta": 1.0}), (UniPCMultistepScheduler, {})], ids=["stochastic", "unipc"]
)
def test_images_of_a_real_pipeline_equal_those_of_the_same_starts(kind, arguments):
    pipe = tiny.make_sd()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    wrapped = FKSteeringPipeline(pipe, reward=redness)
    wrapped.set_progress_bar_config(disable=True)
    shared = {"num_inference_steps": 5, "output_type": "pt", **arguments}
    out = wrapped("a star", search=CONFIG, num_images_per_prompt=2, generator=generators(6), **shared)
    assert [step.num_particles for step in out.trace.steps] == [6, 4, 2]
    assert out.trace.cost.sample_steps == sum(CONFIG.population().forecast(5).steps) == out.trace.num_model_rows // 2
    for image, slot in zip(out.images, out.trace.selected[0].tolist(), strict=True):
        start = int(out.trace.lineage()[0, slot])
        stock = pipe("a star", generator=generators(6)[start], **shared).images[0]
        torch.testing.assert_close(image, stock, rtol=0, atol=1e-4)


def test_prompts_of_a_pipeline_are_cut_together():
    """One call of the denoiser for all prompts at each step, and the images of each prompt alone."""
    pipe = tiny.make_sd()
    wrapped, rows = FKSteeringPipeline(pipe, reward=redness), []
    wrapped.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    shared = {"search": CONFIG, "num_images_per_prompt": 2, "num_inference_steps": 5, "output_type": "pt", "eta": 1.0}
    prompts, noise = ["a star", "two dogs"], generators(12)
    together = wrapped(prompts, generator=noise, **shared)
    assert rows == [2 * 2 * size for size in CONFIG.population().forecast(5).steps]
    for index, prompt in enumerate(prompts):
        alone = wrapped(prompt, generator=generators(12)[6 * index : 6 * index + 6], **shared)
        images = together.images[2 * index : 2 * index + 2]
        for image, expected in zip(images, alone.images, strict=True):
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)


def test_the_best_go_on():
    population = Pruning(num_particles=4, keep=(2,), at=(0.5,)).population(2)
    population.begin(10)
    ancestors = population.advance(torch.tensor([0.0, 3.0, 1.0, 3.0, 5.0, 5.0, 5.0, -torch.inf]), step=5)
    assert ancestors.tolist() == [1, 3, 4, 5]
    assert (population.num_particles, population.max_particles, population.copies) == (2, 4, False)


def test_cuts_that_fall_on_one_step_are_one():
    forecast = Pruning(num_particles=8, keep=(4, 1), at=(0.5, 0.6)).population().forecast(2)
    assert (forecast.steps, forecast.finished) == ((8, 8), 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"keep": (7,)}, ValueError, "one number for each cut, got 1 in keep and 2 in at"),
        ({"keep": (13, 4)}, ValueError, r"keep should descend from num_particles = 12, got \(13, 4\)"),
        ({"keep": (4, 7)}, ValueError, "keep should descend"),
        ({"keep": (4, 0)}, ValueError, r"keep\[1\] should be at least 1"),
        ({"keep": 4}, TypeError, "keep should be a list of numbers"),
        ({"at": (0.5, 0.5)}, ValueError, "at should ascend"),
        ({"at": (0.5, 1.5)}, ValueError, r"at\[1\] should be in \[0, 1\]"),
        ({"at": "0.4"}, TypeError, "at should be a list of numbers"),
        ({"num_particles": True}, TypeError, "num_particles should be an int"),
        ({"abstain": None}, TypeError, "abstain should be True or False"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        Pruning(**settings)


def test_an_interrupted_run_is_refused():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    sample = initial_sample(scheduler, 6)
    with (
        pytest.raises(RuntimeError, match="with 6 particles of a prompt"),
        steer(scheduler, CONFIG.population(), score),
    ):
        scheduler.step(torch.zeros_like(sample), scheduler.timesteps[0], sample)


def test_an_unknown_scheduler_is_refused_by_name_before_its_first_step():
    from diffusers import IPNDMScheduler

    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(10)
    sample = torch.zeros(6, 1, 2, 2)
    with (
        pytest.raises(ValueError, match="PruningPopulation scores .* IPNDMScheduler does not tell"),
        steer(scheduler, CONFIG.population(), score),
    ):
        scheduler.step(sample, scheduler.timesteps[0], sample)
