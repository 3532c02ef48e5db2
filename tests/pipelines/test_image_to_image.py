"""Pipelines that run fewer steps than the scheduler has: image-to-image, inpainting, base and refiner, interrupts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
)
from PIL import Image

from fk_reward import FKSteeringConfig
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered

PROMPT, STEPS = "a red circle", 20
MAKERS = {"sd": tiny.make_sd, "sdxl": tiny.make_sdxl}
SCHEDULERS = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False),
    "ddpm": lambda config: DDPMScheduler.from_config(config, clip_sample=False),
    "kdpm2": KDPM2AncestralDiscreteScheduler.from_config,
}
KINDS = {"image": AutoPipelineForImage2Image, "inpaint": AutoPipelineForInpainting}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
STEERED = {"num_particles": 4, "num_images_per_prompt": 4, "reward_scale": 1e4, "ess_threshold": 1.0}


def make(kind, family, scheduler):
    pipe = MAKERS[family]()
    pipe.scheduler = SCHEDULERS[scheduler](pipe.scheduler.config)
    pipe = KINDS[kind].from_pipe(pipe) if kind in KINDS else pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments_of(kind, pipe):
    eta = {"eta": 1.0} if isinstance(pipe.scheduler, DDIMScheduler) else {}
    masks = {"mask_image": MASK, "height": 64, "width": 64} if kind == "inpaint" else {}
    return {"image": IMAGE, **masks}, eta


def expected_steps(strength, *, order=1):
    scheduled = 2 * STEPS - 1 if order == 2 else STEPS
    return scheduled - (STEPS - int(STEPS * strength)) * order


@pytest.mark.parametrize("strength", [0.2, 0.8])
@pytest.mark.parametrize(("family", "scheduler"), [("sd", "ddim"), ("sd", "ddpm"), ("sd", "kdpm2"), ("sdxl", "ddim")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_is_scored(kind, family, scheduler, strength):
    pipe = make(kind, family, scheduler)
    call = {"num_inference_steps": STEPS, "strength": strength, "output_type": "np", **arguments_of(kind, pipe)[0]}
    out = steered(pipe)(PROMPT, generator=generator(), **STEERED, **call)
    num_steps = expected_steps(strength, order=pipe.scheduler.order)
    assert out.trace.num_steps == num_steps
    due = FKSteeringConfig().scoring_steps(num_steps)
    if scheduler == "kdpm2":  # which adds noise in the second stage of a step only
        due = tuple(dict.fromkeys(step + (step + 1) % 2 for step in due))
    assert tuple(step.step for step in out.trace.steps[:-1]) == due
    assert any(step.ancestors is not None for step in out.trace.steps)
    assert len(np.unique(out.images.reshape(4, -1), axis=0)) == 4
    assert not out.trace.notes


@pytest.mark.parametrize("strength", [0.2, 0.8])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_steered_is_the_stock_image(kind, scheduler, strength):
    pipe = make(kind, "sd", scheduler)
    inputs, eta = arguments_of(kind, pipe)
    call = {"num_inference_steps": STEPS, "strength": strength, "output_type": "np", **inputs}
    stock = pipe(PROMPT, generator=generator(), **call, **eta).images
    out = steered(pipe)(PROMPT, num_particles=1, generator=generator(), **call)
    assert np.array_equal(out.images, stock)
    stock = pipe(PROMPT, generator=generator(), num_images_per_prompt=4, **call, **eta).images
    out = steered(pipe, lambda images, prompts: torch.zeros(len(images)))(
        PROMPT, generator=generator(), **STEERED, **call
    )
    assert len(out.trace.steps) >= 2
    assert np.array_equal(out.images, stock)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_gains(kind):
    pipe = make(kind, "sd", "ddim")
    inputs, _ = arguments_of(kind, pipe)
    call = {"num_inference_steps": STEPS, "strength": 0.8, "potential": "difference", **inputs}
    plain = steered(pipe)(PROMPT, generator=generator(), **STEERED | {"reward_scale": 0}, **call)
    out = steered(pipe)(PROMPT, generator=generator(), **STEERED, **call)
    assert out.rewards.mean() > plain.rewards.mean()


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_a_funnel_ends_with_what_was_asked_for(scheduler):
    pipe = make("image", "sd", scheduler)
    out = steered(pipe)(
        PROMPT,
        **{"num_particles": 8, "final_particles": 2, "num_images_per_prompt": 2, "num_inference_steps": STEPS},
        **{"image": IMAGE, "strength": 0.2, "generator": generator(), "output_type": "pt"},
    )
    assert len(out.images) == out.trace.num_particles == 2


def test_a_second_order_scheduler_runs_more_steps_than_were_asked_for():
    out = steered(make("text", "sd", "kdpm2"))(PROMPT, num_inference_steps=6, generator=generator(), **STEERED)
    assert out.trace.num_steps == 11
    assert not out.trace.notes


class TestBaseAndRefiner:
    def base(self, **arguments):
        pipe = make("text", "sdxl", "ddim")
        call = {"num_inference_steps": STEPS, "denoising_end": 0.4, "generator": generator()}
        return steered(pipe)(PROMPT, **STEERED | call | arguments), pipe

    def test_the_base_is_rewarded_for_the_images_that_it_foresees(self, caplog):
        out, pipe = self.base(output_type="latent")
        assert out.trace.num_steps == 8
        assert [step.step for step in out.trace.steps[:-1]] == list(FKSteeringConfig().scoring_steps(8))
        noisy = pipe.vae.decode(out.images / pipe.vae.config.scaling_factor, return_dict=False)[0]
        of_noise = BrightnessReward().score((noisy / 2 + 0.5).clamp(0, 1), None)
        assert not torch.allclose(out.rewards[0], of_noise, atol=1e-4)
        assert "after 8 steps" in out.trace.notes[0]
        assert "the final rewards are those of the predicted clean images" in out.trace.notes[0]
        assert not caplog.records

    def test_these_are_the_predictions_of_the_last_step(self, monkeypatch):
        """As DDIM itself reports them."""
        reported, step = [], DDIMScheduler.step

        def spy(self, model_output, timestep, sample, eta=0.0, generator=None, return_dict=True):
            out = step(self, model_output, timestep, sample, eta=eta, generator=generator)
            reported.append(out.pred_original_sample)
            return (out.prev_sample, out.pred_original_sample)

        monkeypatch.setattr(DDIMScheduler, "step", spy)
        out, pipe = self.base(output_type="latent")
        images = pipe.vae.decode(reported[-1] / pipe.vae.config.scaling_factor, return_dict=False)[0]
        rewards = BrightnessReward().score((images / 2 + 0.5).clamp(0, 1), None)
        torch.testing.assert_close(out.rewards[0], rewards[out.trace.selected[0]], rtol=1e-5, atol=1e-5)

    def test_noisy_images_are_warned_of(self, caplog):
        out, _ = self.base(output_type="pt")
        assert "the images that are returned still hold noise" in caplog.text
        latents, _ = self.base(output_type="latent")
        torch.testing.assert_close(out.rewards, latents.rewards, rtol=1e-5, atol=1e-5)

    def test_a_scheduler_that_does_not_tell_the_clean_image_is_refused(self):
        pipe = tiny.make_sdxl(scheduler=EulerDiscreteScheduler())
        pipe.unet.forward = None
        with pytest.raises(ValueError, match="which the step of EulerDiscreteScheduler does not tell"):
            steered(pipe)(PROMPT, num_inference_steps=STEPS, denoising_end=0.4, num_resamples=0)

    def test_the_refiner_is_scored(self):
        base, _ = self.base(output_type="latent", num_images_per_prompt=1)
        refiner = steered(make("image", "sdxl", "ddim"))
        out = refiner(
            PROMPT,
            **{"image": base.images, "denoising_start": 0.4, "num_inference_steps": STEPS, "generator": generator()},
            **STEERED,
        )
        assert out.trace.num_steps == 12
        assert [step.step for step in out.trace.steps[:-1]] == list(FKSteeringConfig().scoring_steps(12))
        assert not out.trace.notes


def interrupt_after(num_steps):
    def callback(pipe, step, timestep, values):
        pipe._interrupt = step + 1 >= num_steps
        return values

    return callback


def test_an_interrupted_run_says_so(caplog):
    wrapped = steered(make("text", "sd", "ddim"))
    out = wrapped(
        PROMPT,
        **{"num_inference_steps": 10, "callback_on_step_end": interrupt_after(5), "generator": generator()},
        **STEERED,
    )
    assert out.trace.num_steps == 5
    assert out.trace.notes[0] == "The loop ended after 5 of 10 steps, before its scoring steps [6, 7, 8]."
    assert "still hold noise" in out.trace.notes[1]
    assert [record.message.split(" Ask")[0] for record in caplog.records] == list(out.trace.notes)


def test_an_interrupted_funnel_is_an_error():
    with pytest.raises(RuntimeError, match="after 5 of 10 steps .* it was interrupted"):
        steered(make("text", "sd", "ddim"))(
            PROMPT,
            **{"num_inference_steps": 10, "callback_on_step_end": interrupt_after(5), "generator": generator()},
            **{"num_particles": 8, "final_particles": 2},
        )


def test_an_earlier_call_says_nothing_about_this_one():
    """The pipeline still knows how many steps its last call made."""
    pipe = make("text", "sd", "ddim")
    pipe(PROMPT, num_inference_steps=3)
    assert steered(pipe)(PROMPT, num_inference_steps=9, generator=generator(), **STEERED).trace.num_steps == 9
    assert pipe.num_timesteps == 9


@pytest.mark.parametrize("images", [[IMAGE, IMAGE], torch.zeros(2, 3, 64, 64), np.zeros((2, 64, 64, 3))])
def test_several_images_are_refused(images):
    with pytest.raises(ValueError, match="one image for all particles of a call, got 2: call the pipeline once for"):
        steered(make("image", "sd", "ddim"))(["a star", "a circle"], image=images, num_inference_steps=4)


def test_a_pipeline_that_never_steps_is_an_error(monkeypatch):
    pipe = make("text", "sd", "ddim")
    monkeypatch.setattr(type(pipe), "__call__", lambda self, prompt=None, num_images_per_prompt=1, **_: None)
    with pytest.raises(RuntimeError, match="never called the step of its scheduler"):
        steered(pipe)(PROMPT)
