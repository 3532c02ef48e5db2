"""Pipelines of every family: SD, SDXL, SD3, PixArt, Flux, steered without a line of their own code copied."""

import logging
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AutoencoderKL,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LatentConsistencyModelPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)

from fk_reward.pipelines import LatentDecoder, decoding, stochastic_scheduler
from fk_reward.pipelines.decoding import to_unit_range
from fk_reward.sampling.stochasticity import require_stochastic
from tests import tiny
from tests.pipelines.calls import STEPS, BrightnessReward, decoder_of, generator, steered
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder

MAKERS = {
    "sd": tiny.make_sd,
    "sdxl": tiny.make_sdxl,
    "sd3": tiny.make_sd3,
    "pixart": tiny.make_pixart,
    "flux": tiny.make_flux,
}
PIPELINES = [
    *(AuraFlowPipeline, FluxPipeline, LatentConsistencyModelPipeline),
    *(PixArtAlphaPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline),
    *(StableDiffusionPipeline, StableDiffusionControlNetPipeline),
    *(StableDiffusionXLPipeline, StableDiffusionXLControlNetPipeline, StableDiffusionXLPAGPipeline),
]
EXTRA = {"pixart": {"use_resolution_binning": False}}


def make(family):
    pipe = MAKERS[family]()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = stochastic_scheduler(pipe.scheduler)
    return pipe


@pytest.mark.parametrize("family", MAKERS)
def test_steering_raises_the_reward(family):
    wrapped = steered(make(family))
    arguments = {
        "num_inference_steps": STEPS,
        "num_particles": 6,
        "num_images_per_prompt": 6,
        "potential": "difference",
        **EXTRA.get(family, {}),
    }
    plain = wrapped("a red circle", num_resamples=0, generator=generator(), **arguments)
    out = wrapped("a red circle", reward_scale=1e4, ess_threshold=1.0, generator=generator(), **arguments)
    assert len(out.images) == 6
    assert out.rewards.mean() > plain.rewards.mean()
    assert out.trace.num_model_rows == plain.trace.num_model_rows > 0
    assert any(step.ancestors is not None for step in out.trace.steps)


def check_scoring_steps_decode_like_the_end(pipe, family):
    """On the final latents, the decoder of the scoring steps gives the stock pipeline's image, bit for bit."""
    wrapped = steered(pipe)
    arguments = {"num_inference_steps": 3, "num_particles": 2, "num_images_per_prompt": 2, **EXTRA.get(family, {})}
    latents = wrapped("a red circle", generator=generator(), output_type="latent", **arguments)
    images = wrapped("a red circle", generator=generator(), output_type="pt", **arguments)
    assert torch.equal(decoder_of(wrapped)(latents.images), images.images.float())
    torch.testing.assert_close(latents.rewards, images.rewards, rtol=1e-5, atol=1e-5)
    assert images.images.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", MAKERS)
def test_a_scoring_step_decodes_as_the_pipeline_does_at_its_end(family, dtype):
    pipe = make(family).to(dtype)
    assert pipe.vae.config.force_upcast, "so it is in most repositories, whether or not their pipeline looks at it"
    check_scoring_steps_decode_like_the_end(pipe, family)
    assert pipe.vae.dtype == dtype


@pytest.mark.parametrize(("family", "always"), [("sd", True), ("pixart", True), ("sdxl", False)])
def test_float32_in_the_wrong_place_is_noticed(family, always, monkeypatch):
    monkeypatch.setattr(decoding, "widens_to_float32", lambda pipe, vae: always)
    with pytest.raises(AssertionError):
        check_scoring_steps_decode_like_the_end(make(family).to(torch.float16), family)


@pytest.mark.parametrize("cls", PIPELINES, ids=lambda cls: cls.__name__)
def test_the_pipelines_that_widen_are_those_with_a_method_for_it(cls):
    """`upcast_vae` is deprecated, and so no criterion for the library; here it is an independent one."""
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4).to(torch.float16)
    for kind in (cls, type("Mine", (cls,), {"__call__": lambda self: None})):
        assert decoding.widens_to_float32(kind.__new__(kind), vae) == hasattr(cls, "upcast_vae")


def test_decoding_warns_of_nothing(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe = make("sdxl").to(torch.float16)
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    caplog.clear()
    for preview in (None, make_tiny_autoencoder()):
        wrapped = steered(pipe)
        wrapped.preview = preview
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decoder_of(wrapped)(latents)
    assert not caplog.records
    pipe.vae.to(torch.float32)
    assert caplog.records, "Diffusers does not warn any more: its own `to` can be used"


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_matching_reproduces_from_the_generator_alone(family):
    """The stock pipelines draw their step noise from the global generator; steered, from the one that was given."""
    wrapped = steered(make(family))
    images = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        out = wrapped("a red circle", num_inference_steps=STEPS, generator=generator(), output_type="pt")
        images.append(out.images)
    assert torch.equal(*images)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_flow_matching_without_a_generator_equals_the_stock_pipeline(family):
    pipe = make(family)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    torch.manual_seed(3)
    stock = pipe("a red circle", num_inference_steps=STEPS, output_type="pt").images
    torch.manual_seed(3)
    out = steered(pipe)("a red circle", num_particles=1, num_inference_steps=STEPS, output_type="pt")
    assert torch.equal(out.images, stock)


def test_flux_decodes_at_the_size_that_was_asked_for():
    wrapped = steered(make("flux"))
    out = wrapped("a red circle", height=64, width=32, num_particles=2, num_inference_steps=3, output_type="pt")
    assert out.images.shape[-2:] == (64, 32)
    assert out.trace.steps[0].thumbnails.shape[-2:] == (64, 32)


def test_a_pipeline_whose_latents_are_unknown_asks_for_preview():
    wrapped = steered(make("sd"))
    with pytest.raises(ValueError, match="preview"):
        decoder_of(wrapped)(torch.zeros(1, 4, 1, 8, 8))
    wrapped.preview = lambda latents: torch.full((len(latents), 3, 8, 8), 0.5)
    out = wrapped("a red circle", num_inference_steps=3, num_particles=2)
    assert float(out.trace.steps[0].rewards.std()) == 0.0


def test_sdxl_float16_autoencoder_is_upcast_and_put_back():
    pipe = make("sdxl")
    pipe.vae.to(torch.float16)
    seen = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    decoder_of(steered(pipe))(torch.zeros(1, 4, 8, 8, dtype=torch.float16))
    hook.remove()
    assert seen == [torch.float32]
    assert pipe.vae.dtype == torch.float16


def test_a_decode_that_overflows_names_prompt_and_particle():
    pipe = make("sd")
    wrapped = steered(pipe)

    def overflow(latents):
        images = torch.full((len(latents), 3, 8, 8), 0.5)
        images[5, 0, 0, 0] = torch.nan
        return images

    wrapped.preview = overflow
    with pytest.raises(ValueError, match="prompt 1, particle 1 holds NaN"):
        wrapped(["a red circle", "a blue square"], num_inference_steps=STEPS)


def test_a_reward_that_is_nan_names_prompt_particle_and_step():
    class Broken(BrightnessReward):
        def score(self, images, prompts):
            scores = super().score(images, prompts)
            scores[6] = torch.inf
            return scores

    with pytest.raises(ValueError, match="At step 2: The reward of prompt 1, particle 2 is inf"):
        steered(make("sd"), Broken())(["a red circle", "a blue square"], num_inference_steps=STEPS)


def test_pixel_space_pipelines_need_no_autoencoder():
    images = LatentDecoder(object())(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
    assert images[0].max() == 0
    assert images[1].min() == 1
    with pytest.raises(ValueError, match="preview"):  # latents of an autoencoder that is not called vae
        LatentDecoder(object())(torch.zeros(2, 4, 4, 4))


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_deepfloyd_returns_samples_that_become_images(output_type):
    """The stock pipeline turns its samples into images for `"np"` and `"pil"`, but not for `"pt"`; the reward does."""
    arguments = {"num_inference_steps": STEPS, "clean_caption": False, "output_type": output_type}
    pipe = tiny.make_if()
    stock = pipe("a red circle", generator=generator(), **arguments)
    out = steered(pipe)("a red circle", num_particles=1, generator=generator(), **arguments)
    assert np.array_equal(np.asarray(out.images), np.asarray(stock.images))
    if output_type == "pt":
        assert stock.images.min() < 0, "else it is an image already"
        torch.testing.assert_close(out.rewards[0], BrightnessReward()(to_unit_range(stock.images), "a red circle"))


def test_deepfloyd_is_steered():
    wrapped = steered(tiny.make_if())
    arguments = {"num_inference_steps": STEPS, "clean_caption": False, "num_particles": 4, "num_images_per_prompt": 4}
    plain = wrapped("a red circle", num_resamples=0, generator=generator(), **arguments)
    out = wrapped("a red circle", reward_scale=1e4, ess_threshold=1.0, generator=generator(), **arguments)
    assert out.rewards.mean() > plain.rewards.mean()


def test_deepfloyd_has_no_latents():
    pipe = steered(tiny.make_if())
    pipe.unet.forward = None  # refused before any work
    with pytest.raises(ValueError, match="IFPipeline draws pixels and has no latents: ask for output_type='pt'"):
        pipe("a red circle", num_inference_steps=2, output_type="latent")


def test_packed_latents_of_a_video_autoencoder_are_not_known_outside_a_call():
    """Qwen-Image unpacks to `(B, C, 1, H, W)`, and its autoencoder normalises each channel."""
    pipe = make("flux")
    pipe._unpack_latents = lambda latents, height, width, scale: torch.zeros(len(latents), 4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 16, 16\), which cannot be decoded outside a call"):
        LatentDecoder(pipe)(torch.zeros(2, 16, 16))


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.mark.parametrize("cls", [DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_flow_model_keeps_its_levels_whatever_solver_it_came_with(cls):
    """These solvers state betas, too; DDIM on them would make noise of a flow model."""
    stochastic = stochastic_scheduler(cls(**FLOW))
    require_stochastic(stochastic)
    stochastic.set_timesteps(10)
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(sigmas=[i / 10 for i in range(10, 0, -1)])
    torch.testing.assert_close(stochastic.sigmas[1:-1], reference.sigmas[1:-1], atol=2e-2, rtol=0)
    assert stochastic.config.prediction_type == "flow_prediction"


def test_rewards_see_the_prompt_of_each_particle():
    seen = []

    class Listening(BrightnessReward):
        def score(self, images, prompts):
            seen.append(prompts)
            return super().score(images, prompts)

    steered(make("sd"), Listening())(["one", "two"], num_particles=2, num_inference_steps=3)
    assert all(prompts == ["one", "one", "two", "two"] for prompts in seen)
