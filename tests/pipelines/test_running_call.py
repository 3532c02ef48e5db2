"""Finished images: what the stock pipeline returns for the type that was asked for, whatever the family."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from fk_reward.pipelines.epilogue import CannotDecodeError, NoLoopError, StepResult, as_tensor, autoencoders
from fk_reward.pipelines.hooks import wrap_method
from fk_reward.pipelines.running_call import RunningCall
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered
from tests.tiny.families import FAMILIES

FAMILIES_THAT_DIFFER = [
    "Kandinsky3Pipeline",  # raw values for "pt", an autoencoder called movq
    "Kandinsky5T2IPipeline",  # `.image`, latents (B, T, H, W, C)
    "KandinskyV22CombinedPipeline",  # a stage that is called by another pipeline
    "PRXPixelPipeline",  # raw pixels for "pt"
    "Krea2Pipeline",  # packed, a frame, a mean and a deviation for each channel
    "BriaFiboPipeline",
    "NucleusMoEImagePipeline",
    "SanaSprintPipeline",  # latents that are not those of the last step
    "StableDiffusionPAGPipeline",  # puts its attention processors back at the end
]
STEPS = 3


def calls_of(name):
    """The stock call of one image, and the steered call that is to equal it."""
    pipe, family = FAMILIES[name].build(), FAMILIES[name]
    if isinstance(pipe.scheduler, DDIMScheduler):  # whose eta not all of these pipelines hand on
        steered(pipe).scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    arguments = {**family.call_arguments(["a red circle"]), "num_inference_steps": STEPS}

    def stock(output_type):
        torch.manual_seed(3)
        return pipe(**arguments, generator=generator(), output_type=output_type).to_tuple()[0]

    def steered_call(output_type, **options):
        torch.manual_seed(3)
        settings = {"num_particles": 1, "num_resamples": 0, **options}
        settings |= {} if "prompt" in arguments else {"reward_prompts": ["a red circle"]}
        return steered(pipe)(**arguments, **settings, generator=generator(), output_type=output_type)

    return pipe, stock, steered_call


@pytest.mark.parametrize("name", FAMILIES_THAT_DIFFER)
def test_one_particle_is_the_stock_image_for_each_output_type(name):
    pipe, stock, steered_call = calls_of(name)
    expected = BrightnessReward()(as_tensor(stock("np")).contiguous(), "a red circle")
    for output_type in ("pil", "np", "pt", *(["latent"] if autoencoders(pipe) else [])):
        out = steered_call(output_type)
        ours, theirs = (
            np.asarray([np.asarray(image) for image in images]) for images in (out.images, stock(output_type))
        )
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs), output_type
        torch.testing.assert_close(out.rewards[0], expected, rtol=0, atol=1e-6)


def early_and_finished_images(name):
    """Images of the final sample, decoded at each step by the end of the call, and those of the undisturbed call."""
    pipe, stock, _ = calls_of(name)
    results, early = [], []

    def keep(step, *args, **kwargs):
        results.append(step(*args, **kwargs))
        return results[-1]

    with wrap_method(pipe.scheduler, "step", keep):
        finished = as_tensor(stock("np"))
    final = results[-1][1] if name == "SanaSprintPipeline" else results[-1][0]  # a consistency model's denoised sample
    call = RunningCall(pipe, output_type="np")

    def decode(step, *args, **kwargs):
        early.append(call.images(final))
        return step(*args, **kwargs)

    with wrap_method(pipe.scheduler, "step", decode), call.watching():
        disturbed = as_tensor(stock("np"))
    return early, finished, disturbed


@pytest.mark.parametrize("name", FAMILIES_THAT_DIFFER)
def test_a_sample_is_decoded_on_the_way_as_at_the_end_and_leaves_no_trace(name):
    early, finished, disturbed = early_and_finished_images(name)
    assert len(early) > 1
    assert all(torch.equal(images, finished) for images in early)
    assert torch.equal(disturbed, finished)


def test_a_denoiser_that_is_changed_at_the_end_of_the_call_is_noticed(monkeypatch):
    """Without the idle stand-in perturbed attention would be switched off at the first scoring step."""
    monkeypatch.setattr("fk_reward.pipelines.epilogue.DENOISERS", ())
    with pytest.raises((AssertionError, CannotDecodeError)):
        test_a_sample_is_decoded_on_the_way_as_at_the_end_and_leaves_no_trace("StableDiffusionPAGPipeline")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("StableDiffusionPanoramaPipeline", "loop within a loop.*Remedy: pass FKSteeringPipeline.*preview"),
        ("VisualClozePipeline", "another stage .* follows.*num_resamples=0"),
        ("StableCascadePriorPipeline", "cannot be steered: it returns image_embeddings"),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_anything_is_denoised(name, message, monkeypatch):
    monkeypatch.setattr("fk_reward.pipelines.call_arguments.require_stochastic", lambda *args, **kwargs: None)
    pipe, calls = FAMILIES[name].build(), []
    for module in pipe.components.values():
        if isinstance(module, nn.Module) and type(module).__name__.startswith(("UNet", "Flux", "StableCascade")):
            module.register_forward_hook(lambda *_: calls.append(1))
    arguments = FAMILIES[name].call_arguments(["a red circle"])
    texts = {} if "prompt" in arguments else {"reward_prompts": "a red circle"}
    with pytest.raises(ValueError, match=message):
        steered(pipe)(
            **arguments, **texts, num_particles=2, num_inference_steps=STEPS, generator=generator(), output_type="np"
        )
    assert len(calls) == (name == "StableCascadePriorPipeline"), "a prior is no denoiser that is watched, its step is"


def test_a_stage_with_a_scheduler_of_its_own_is_refused_and_gets_the_one_that_is_set():
    """The steps of a combined pipeline are those of its stage, which keeps the scheduler that it was made with."""
    name = "KandinskyV22CombinedPipeline"
    pipe, arguments = FAMILIES[name].build(), FAMILIES[name].call_arguments(["a red circle"])
    other = DDPMScheduler.from_config(pipe.scheduler.config)
    wrapped = steered(pipe)
    wrapped.pipe.scheduler = other  # behind the back of the wrapper
    with pytest.raises(ValueError, match=r"steps with a DDIMScheduler.*decoder_pipe.scheduler = pipe.scheduler"):
        wrapped(**arguments, num_particles=2, num_inference_steps=STEPS)
    wrapped.scheduler = other
    assert pipe.decoder_pipe.scheduler is other
    assert wrapped(**arguments, num_particles=2, num_inference_steps=STEPS).trace.num_steps == STEPS


def test_a_loop_whose_source_is_not_there_is_refused_before_the_first_step(monkeypatch):
    def no_loop(frame):
        raise NoLoopError("no loop over the steps of a scheduler was found in the source of its call")

    monkeypatch.setattr("fk_reward.pipelines.running_call.Epilogue.of", no_loop)
    pipe = tiny.make_sd()
    with pytest.raises(ValueError, match="StableDiffusionPipeline cannot be turned into images.*num_resamples=0"):
        steered(pipe)("a red circle", num_inference_steps=STEPS, num_particles=2)
    with pytest.raises(ValueError, match="Ask for 'np' or 'pil'"):
        steered(pipe)("a red circle", num_inference_steps=STEPS, num_particles=2, num_resamples=0, output_type="pt")
    out = steered(pipe)("a red circle", num_inference_steps=STEPS, num_particles=2, num_resamples=0, output_type="np")
    torch.testing.assert_close(out.rewards[0], BrightnessReward()(as_tensor(out.images), "a red circle"))


class Checker(nn.Module):
    """A safety checker in the manner of Stable Diffusion's and DeepFloyd IF's, of the images with these places."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, flagged, num_returned):
        super().__init__()
        self.flagged, self.num_returned = flagged, num_returned

    def forward(self, images, clip_input):
        flags = [i in self.flagged for i in range(len(images))]
        for i in self.flagged:
            images[i] = 0.0 * images[i]
        return (images, flags, [False] * len(images))[: self.num_returned]


class Features:
    """A feature extractor that sees nothing."""

    def __call__(self, images, return_tensors):
        batch = SimpleNamespace(pixel_values=torch.zeros(len(images), 1))
        batch.to = lambda *args, **kwargs: batch
        return batch


def checked(family, flagged):
    pipe = tiny.make_if() if family == "if" else tiny.make_sd()
    checker = Checker(flagged, 3 if family == "if" else 2)
    pipe.register_modules(feature_extractor=Features(), safety_checker=checker)
    return pipe


class Darkness(BrightnessReward):
    """Black is the best."""

    def score(self, images, prompts):
        return -super().score(images, prompts)


ARGUMENTS = {"num_inference_steps": STEPS, "num_particles": 4, "num_images_per_prompt": 4, "output_type": "np"}


def call_checked(family, flagged, **options):
    extra = {"clean_caption": False} if family == "if" else {}
    arguments = {**ARGUMENTS, **extra, **options}
    return steered(checked(family, flagged), Darkness())("a red circle", generator=generator(), **arguments)


@pytest.mark.parametrize("family", ["sd", "if"])
def test_an_image_that_was_blacked_out_does_not_win_by_its_blackness(family):
    out = call_checked(family, {1, 2})
    assert out.nsfw_content_detected == [False] * 4
    assert out.rewards.isfinite().all()
    assert (out.images.max(axis=(1, 2, 3)) > 0).all()
    assert out.trace.selected[0].unique().tolist() == [0, 3], "what is allowed repeats where more is asked for"
    assert any("blacked out got the reward -inf" in note for note in out.trace.notes)


def test_black_images_that_are_scored_win(monkeypatch):
    """What this is for: the reward itself prefers them."""
    monkeypatch.setattr("fk_reward.pipelines.output._without_flagged", lambda rewards, flags, run: rewards)
    assert call_checked("sd", {1, 2}).nsfw_content_detected == [True, True, False, False]


def test_a_prompt_of_which_all_images_were_blacked_out_comes_back_flagged(caplog):
    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        out = call_checked("sd", {0, 1, 2, 3})
    assert out.nsfw_content_detected == [True] * 4
    assert out.images.max() == 0
    assert out.rewards.eq(0).all(), "of black images, and not of those that nobody may see"
    assert "blacked out all 4 images of prompt 0" in caplog.text
    assert any("blacked out all 4 images" in note for note in out.trace.notes)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_deepfloyd_keeps_its_safety_checker_and_its_watermark(output_type):
    pipe = checked("if", {0})
    pipe.watermarker = SimpleNamespace(apply_watermark=lambda images, size: [image.rotate(90) for image in images])
    arguments = {"num_inference_steps": STEPS, "clean_caption": False, "output_type": output_type}
    stock = pipe("a red circle", num_images_per_prompt=2, generator=generator(), **arguments)
    out = steered(pipe, Darkness())(
        "a red circle", num_particles=2, num_images_per_prompt=2, reward_scale=0, generator=generator(), **arguments
    )
    assert out.nsfw_content_detected == [False, False], "a blacked-out image is not returned beside one that is allowed"
    assert all(np.array_equal(np.asarray(image), np.asarray(stock.images[1])) for image in out.images)
    alone = steered(pipe, Darkness())("a red circle", num_particles=1, generator=generator(), **arguments)
    assert alone.nsfw_content_detected == [True]
    assert np.asarray(alone.images[0]).max() == 0, "as the pipeline itself returns it"


def test_a_result_has_its_sample_wherever_a_pipeline_looks():
    latents, denoised = StepResult.of(torch.ones(1))
    assert latents is denoised
