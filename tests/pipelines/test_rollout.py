"""Whole trajectories of a pipeline: what a pass draws, from where it begins, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image

from fk_reward.pipelines.rollout import run_call
from fk_reward.search import BestOfN, DraftRefine, Passes, Scored
from tests import tiny
from tests.pipelines.calls import generator, steered

PROMPT, STEPS = "a red circle", 4
MAKERS = {
    "sd": tiny.make_sd,
    "sdxl": tiny.make_sdxl,
    "pixart": lambda: tiny.make_pixart(scheduler=DDIMScheduler()),
    "sd3": lambda: tiny.make_sd3(scheduler=FlowMatchEulerDiscreteScheduler()),
    "flux": lambda: tiny.make_flux(scheduler=FlowMatchEulerDiscreteScheduler()),
}
EXTRA = {"pixart": {"use_resolution_binning": False}}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """A search that makes the passes of a test."""

    script: Callable[..., Scored]
    num_particles: int = 2
    finished: int = 2
    default_eta = None

    def population(self, num_groups=1, generators=None, *, spread=None):
        return Passes(lambda steps: ((self.num_particles, steps),), num_groups, finished=self.finished)

    def run(self, rollout, *, num_groups, generators):
        return self.script(rollout)

    def to_dict(self):
        return {}


@pytest.fixture(scope="module")
def models():
    """Each model once; a test that changes the scheduler puts its own there."""
    made: dict[str, Any] = {}

    def model(family, scheduler=None):
        if family not in made:
            made[family] = MAKERS[family]()
            made[family].set_progress_bar_config(disable=True)
        pipe = made[family]
        if scheduler is not None:
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        return pipe

    return model


def call(pipe, script, *, number=2, prompt=PROMPT, **arguments):
    arguments = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generator(3)} | arguments
    options = {name: arguments.pop(name) for name in ("num_particles", "finished") if name in arguments}
    search = Scripted(script=script, **options)
    return steered(pipe)(prompt, search=search, num_images_per_prompt=number, **arguments)


@pytest.mark.parametrize("family", MAKERS)
def test_a_pass_draws_what_a_plain_call_draws_and_again_from_its_start(models, family):
    pipe, kept = models(family), []

    def script(rollout):
        first = rollout(num_particles=2)
        short = rollout(first.noise, num_particles=2, num_steps=2)
        again = rollout(first.noise, num_particles=2)
        kept.extend((first, short, again))
        return again

    extra = EXTRA.get(family, {})
    before = dict(vars(pipe.scheduler))
    out = call(pipe, script, **extra)
    assert not {"prepare_latents", "progress_bar"} & set(vars(pipe))
    assert vars(pipe.scheduler).keys() == before.keys()
    shared = {"num_images_per_prompt": 2, "output_type": "pt", **extra}
    stock = pipe(PROMPT, num_inference_steps=STEPS, generator=generator(3), **shared).images
    first, short, again = kept
    assert torch.equal(first.images, stock)
    assert torch.equal(again.images, stock)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(out.images, stock[out.trace.selected[0]])
    given = pipe(PROMPT, num_inference_steps=2, latents=first.noise, generator=generator(3), **shared).images
    assert torch.equal(short.images, given), "the start is what the call takes as latents"
    assert out.trace.cost.sample_steps == 2 * out.trace.num_steps
    assert out.trace.num_steps in (2 * STEPS + 2, 2 * STEPS + 5), "a step more a pass with PNDM"


def test_without_a_generator_every_pass_begins_with_the_same_state(models):
    pipe, kept = models("sd", EulerAncestralDiscreteScheduler), []

    def script(rollout):
        kept.extend(rollout(num_particles=2) for _ in range(2))
        return kept[-1]

    torch.manual_seed(5)
    call(pipe, script, generator=None)
    torch.manual_seed(5)
    stock = pipe(PROMPT, num_inference_steps=STEPS, num_images_per_prompt=2, output_type="pt").images
    assert torch.equal(kept[0].images, stock)
    assert torch.equal(kept[1].images, stock)


def test_latents_of_the_caller_are_the_starts(models):
    pipe, kept = models("sd", EulerDiscreteScheduler), []
    latents = torch.randn(2, 4, 8, 8, generator=generator(8))

    def script(rollout):
        kept.append(rollout(num_particles=2))
        return rollout(kept[0].noise[[1]], num_particles=1, particles=torch.tensor([1]))

    out = call(pipe, script, number=1, finished=1, latents=latents, height=64, width=64)
    assert torch.equal(kept[0].noise, latents)
    alone = pipe(PROMPT, num_inference_steps=STEPS, latents=latents[[1]], output_type="pt").images
    torch.testing.assert_close(out.images, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", DDIMScheduler),
        ("sd", DDPMScheduler),
        ("sd", EulerDiscreteScheduler),
        ("sdxl", EulerAncestralDiscreteScheduler),
        ("flux", FlowMatchEulerDiscreteScheduler),
        ("sd3", FlowMatchEulerDiscreteScheduler),
    ],
)
def test_a_pass_from_inside_is_the_rest_of_a_trajectory(models, family, scheduler):
    """The samples before step 2, from there on with the generators of that step: the same finished samples."""
    pipe, kept, states = models(family, scheduler), [], []
    own = generator(3)

    def keep(pipe, index, timestep, tensors):
        if index == 1 and not states:
            states.extend((tensors["latents"].clone(), own.get_state()))
        return tensors

    whole = pipe(
        PROMPT,
        num_inference_steps=STEPS,
        num_images_per_prompt=2,
        generator=own,
        callback_on_step_end=keep,
        output_type="latent",
    ).images

    def script(rollout):
        # the pass draws noise for a start, which it does not use; the caller's generator is put where step 2 began
        prepare = pipe.prepare_latents

        def then_restore(*args, **kwargs):
            drawn = prepare(*args, **kwargs)
            other.set_state(states[1])
            return drawn

        pipe.prepare_latents = then_restore
        try:
            kept.append(rollout(states[0], from_step=2, num_particles=2))
        finally:
            del pipe.prepare_latents
        return kept[-1]

    other = generator(3)
    out = call(pipe, script, generator=other, output_type="latent")
    assert torch.equal(kept[0].latents.to(whole.dtype).view(whole.shape), whole)
    assert out.trace.cost.sample_steps == 2 * (STEPS - 2)
    assert out.trace.num_steps == STEPS - 2
    assert out.trace.notes == ()


def test_a_multistep_solver_begins_without_a_history(models):
    pipe, kept = models("sd", DPMSolverMultistepScheduler), []

    def script(rollout):
        kept.append(rollout(torch.randn(2, 4, 8, 8), from_step=1, num_particles=2))
        return kept[-1]

    assert call(pipe, script, height=64, width=64).trace.num_steps == STEPS - 1


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd", DDIMScheduler),
        ("sd", DPMSolverMultistepScheduler),
        ("sdxl", EulerAncestralDiscreteScheduler),
        ("flux", FlowMatchEulerDiscreteScheduler),
    ],
)
def test_finished_samples_are_noised_as_diffusers_noises_them(models, family, scheduler):
    pipe, kept, ready = models(family, scheduler), [], []

    def script(rollout):
        first = rollout(num_particles=2)
        noise = torch.randn(first.latents.shape, generator=generator(11))
        kept.extend((first, noise, rollout(first.latents, noise=noise, from_step=2, num_particles=2)))
        ready.append(rollout._schedulers[STEPS])
        return kept[-1]

    out = call(pipe, script, output_type="latent")
    first, noise, second = kept
    # what the scheduler of the pass itself makes of them: image-to-image pipelines ask it so
    stock = copy.copy(ready[0])
    timesteps = stock.timesteps[2:3].repeat(2)
    stock.set_begin_index(2) if hasattr(stock, "set_begin_index") else None
    add = stock.scale_noise if hasattr(stock, "scale_noise") else stock.add_noise
    arguments = (
        (first.latents, timesteps, noise) if hasattr(stock, "scale_noise") else (first.latents, noise, timesteps)
    )
    torch.testing.assert_close(second.noise, add(*arguments).view(second.noise.shape), rtol=1e-5, atol=1e-5)
    assert out.trace.cost.sample_steps == 2 * (STEPS + STEPS - 2)


@pytest.mark.parametrize("source", [lambda: generator(3), lambda: [generator(1), generator(2)]], ids=["one", "list"])
def test_fresh_noise_is_new_in_every_pass(models, source):
    pipe, kept = models("sd", EulerAncestralDiscreteScheduler), []

    def script(rollout):
        first = rollout(num_particles=2)
        noise = torch.randn(first.latents.shape, generator=generator(11))
        again = {"noise": noise, "from_step": 2, "num_particles": 2}
        kept.extend(rollout(first.latents, fresh_noise=fresh, **again).latents for fresh in (False, False, True, True))
        return first

    call(pipe, script, generator=source())
    same, as_before, fresh, other = kept
    assert torch.equal(same, as_before)
    assert (same - fresh).abs().amax() > 1e-3
    assert (fresh - other).abs().amax() > 1e-3
    call(pipe, script, generator=source())
    assert torch.equal(kept[-1], other), "the same generators, the same passes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_step": 0}, "noise needs finished samples of its shape, a from_step of at least 1"),
        ({"from_step": 1, "num_steps": 2}, r"2 steps after passes of \[4\]"),
        ({"from_step": 1, "start": torch.zeros(2, 1)}, r"got noise \(2, 4, 8, 8\), start \(2, 1\)"),
        ({"from_step": STEPS}, "from_step should be below the 4 steps"),
    ],
)
def test_what_cannot_be_noised_is_refused(models, arguments, message):
    def script(rollout):
        first = rollout(num_particles=2)
        noise = torch.zeros(2, 4, 8, 8)
        return rollout(**{"start": first.latents, "noise": noise, "num_particles": 2, **arguments})

    with pytest.raises(ValueError, match=message):
        call(models("sd", EulerAncestralDiscreteScheduler), script, height=64, width=64)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_schedulers_that_cannot_begin_inside_are_refused(models, scheduler):
    pipe = models("sd", scheduler)
    with pytest.raises(ValueError, match=f"{scheduler.__name__} cannot begin at from_step=1"):
        call(pipe, lambda rollout: rollout(torch.randn(2, 4, 8, 8), from_step=1, num_particles=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_step": 1}, "from_step=1 needs a start"),
        ({"start": torch.zeros(2, 4, 8, 8), "from_step": STEPS}, "from_step should be below the 4 steps"),
        ({"start": torch.zeros(3, 4, 8, 8)}, r"A start should be 2 finite rows, .* got a tensor \(3, 4, 8, 8\)"),
        ({"start": torch.full((2, 4, 8, 8), torch.nan)}, "A start should be 2 finite rows"),
        ({"num_particles": 3}, r"should be one of its prompt's 2 particles \(num_particles of Scripted\)"),
        ({"num_particles": 0}, "num_particles should be at least 1"),
        ({"particles": torch.tensor([0])}, "particles should have 1 x 2 entries, got 1"),
        ({"particles": torch.tensor([0, 2])}, "should be one of its prompt's 2 particles"),
        ({"num_steps": 0}, "num_steps should be at least 1"),
    ],
)
def test_arguments_of_a_pass_are_checked_before_anything_is_drawn(models, arguments, message, monkeypatch):
    pipe = models("sd", DDIMScheduler)
    calls = []
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: calls.append(1))
    with pytest.raises(ValueError, match=message):
        call(pipe, lambda rollout: rollout(**{"num_particles": 2, **arguments}))
    assert calls == []


def test_a_particle_that_was_not_in_the_pass_before_is_refused(models):
    def script(rollout):
        rollout(num_particles=1)
        return rollout(num_particles=2)

    with pytest.raises(ValueError, match="should draw particles of the pass before it"):
        call(models("sd", DDIMScheduler), script)


def test_timesteps_and_another_number_of_steps_exclude_each_other(models):
    pipe = models("sd", EulerDiscreteScheduler)
    with pytest.raises(ValueError, match=r"with num_inference_steps=2 in one of its passes, which timesteps=\.\.\."):
        call(pipe, lambda rollout: rollout(num_particles=2, num_steps=2), timesteps=[900, 500, 100])
    out = call(pipe, lambda rollout: rollout(num_particles=2, num_steps=3), timesteps=[900, 500, 100])
    assert out.trace.num_steps == 3


def test_a_particle_that_is_drawn_twice_draws_its_own_noise_twice(models):
    pipe, kept = models("sd", EulerAncestralDiscreteScheduler), []

    def script(rollout):
        first = rollout(num_particles=2)
        kept.extend((first, rollout(first.noise[[1, 1]], num_particles=2, particles=torch.tensor([1, 1]))))
        return kept[-1]

    out = call(pipe, script, generator=[generator(1), generator(2)])
    first, second = kept
    torch.testing.assert_close(second.images, first.images[[1, 1]], rtol=0, atol=1e-4)
    assert out.trace.steps[0].ancestors.tolist() == [[1, 1]]


def test_a_search_may_return_rows_of_several_passes(models):
    pipe, kept = models("sd", EulerDiscreteScheduler), []

    def script(rollout):
        kept.append(rollout(num_particles=2))
        kept.append(rollout(kept[0].noise.flip(-1), num_particles=2))
        joined = Scored.join(kept)
        return joined.take(joined.rewards.topk(2).indices)

    out = call(pipe, script)
    rewards = torch.cat([one.rewards for one in kept])
    images = torch.cat([one.images for one in kept])
    assert out.rewards[0].tolist() == rewards.topk(2).values.tolist()
    assert torch.equal(out.images, images[rewards.topk(2).indices])
    assert [(step.step, step.final) for step in out.trace.steps] == [(3, False), (7, False), (8, True)]


def test_what_a_search_returns_is_checked(models):
    pipe = models("sd", DDIMScheduler)
    with pytest.raises(TypeError, match=r"Scripted\.run should return Scored, .* got Tensor"):
        call(pipe, lambda rollout: rollout(num_particles=2).rewards)
    with pytest.raises(ValueError, match="rewards"):
        call(pipe, lambda rollout: rollout(num_particles=2).take(torch.tensor([0])))


def test_a_reward_that_is_nan_in_a_draft_names_prompt_and_particle(models):
    pipe = steered(models("sd", DDIMScheduler), reward=lambda images, prompts: torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="The reward of prompt 0, particle 1 is nan"):
        pipe(PROMPT, search=DraftRefine(num_particles=2, num_refined=1, draft_steps=1), num_inference_steps=2)


def test_an_inpainting_pipeline_draws_what_best_of_n_draws(models):
    pipe = AutoPipelineForInpainting.from_pipe(models("sd", EulerDiscreteScheduler))
    pipe.set_progress_bar_config(disable=True)
    shared = {"image": IMAGE, "mask_image": MASK, "height": 64, "width": 64, "num_inference_steps": STEPS}
    shared |= {"num_images_per_prompt": 2, "output_type": "pt", "strength": 1.0}
    best = steered(pipe)(PROMPT, search=BestOfN(num_particles=2), generator=generator(3), **shared)
    search = DraftRefine(num_particles=2, num_refined=2, draft_steps=2)
    out = steered(pipe)(PROMPT, search=search, generator=generator(3), **shared)
    assert torch.equal(out.images, best.images)


def test_pipelines_without_starts_are_refused_by_name(models):
    image_to_image = AutoPipelineForImage2Image.from_pipe(models("sd", DDIMScheduler))
    with pytest.raises(ValueError, match="the call of StableDiffusionImg2ImgPipeline takes no latents"):
        steered(image_to_image)(PROMPT, image=IMAGE, search="draft-refine")
    with pytest.raises(ValueError, match="the call of IFPipeline takes no latents"):
        steered(tiny.make_if())(PROMPT, search="draft-refine")


def test_noise_that_cannot_be_found_is_refused_by_name(models, monkeypatch):
    pipe = models("sd", DDIMScheduler)
    prepare = pipe.prepare_latents

    def other(*args, latents=None):
        return prepare(*args[:-1], latents=latents) + (1.0 if latents is None else 2.0)

    monkeypatch.setattr(pipe, "prepare_latents", other)
    with pytest.raises(ValueError, match="cannot find the noise that StableDiffusionPipeline draws"):
        call(pipe, lambda rollout: rollout(num_particles=2))


def test_several_processes_are_refused():
    from types import SimpleNamespace

    asked = SimpleNamespace(config=DraftRefine())
    with pytest.raises(ValueError, match=r"DraftRefine draws whole trajectories .* does not go with spread=True"):
        run_call(None, asked, prepare=None, link=object())
