"""Previews: Diffusers' own decoding is the oracle, other latents are refused, and finished images stay the VAE's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from fk_reward import FKSteeringPipeline
from fk_reward.models import EMBEDDED_MODELS
from fk_reward.pipelines import PREVIEWS, LatentDecoder, ReducedResolution, decoding
from tests import tiny
from tests.pipelines.calls import STEPS, BrightnessReward, constant, decoder_of, generator, steered
from tests.tiny.components import make_vae
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder

PROMPT = "a red circle"
MAKERS = {"sd": tiny.make_sd, "sdxl": tiny.make_sdxl, "sd3": tiny.make_sd3, "flux": tiny.make_flux}


def make_pair(family, **options):
    """A pipeline and a tiny autoencoder of its latents."""
    pipe = MAKERS[family]()
    return pipe, make_tiny_autoencoder(latent_channels=pipe.vae.config.latent_channels, **options)


def stock_images(pipe, autoencoder):
    """What Diffusers itself draws with the tiny autoencoder in the place of the VAE, and the latents before it."""
    torch.manual_seed(3)
    latents = pipe(PROMPT, num_inference_steps=3, generator=generator(), output_type="latent").images
    own, pipe.vae = pipe.vae, autoencoder
    torch.manual_seed(3)
    images = pipe(PROMPT, num_inference_steps=3, generator=generator(), output_type="pt").images
    pipe.vae = own
    return latents, images


def check_decodes_as_diffusers(family, autoencoder_options=None, spoil=lambda latents: latents):
    pipe, autoencoder = make_pair(family, **autoencoder_options or {})
    latents, expected = stock_images(pipe, autoencoder)
    wrapped = steered(pipe)
    wrapped.preview = autoencoder
    torch.testing.assert_close(decoder_of(wrapped)(spoil(latents)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MAKERS)
def test_decodes_as_diffusers_with_the_tiny_autoencoder_as_vae(family):
    check_decodes_as_diffusers(family)


def test_a_scaling_factor_of_the_tiny_autoencoder_is_undone_as_diffusers_does():
    check_decodes_as_diffusers("sd", {"scaling_factor": 0.18215})


@pytest.mark.parametrize("factor", [0.18215, 1 / 0.18215])
def test_a_wrong_scaling_is_noticed(factor):
    with pytest.raises(AssertionError):
        check_decodes_as_diffusers("sd", spoil=lambda latents: factor * latents)


def test_rewards_of_scoring_steps_are_of_the_preview_and_the_last_of_the_vae():
    pipe, autoencoder = make_pair("sd")
    wrapped = steered(pipe)
    arguments = {"num_inference_steps": STEPS, "num_images_per_prompt": 4, "num_resamples": 2, "output_type": "pt"}
    arguments |= {"ess_threshold": 0.0}
    plain = wrapped(PROMPT, generator=generator(), **arguments)
    wrapped.preview = autoencoder
    seen = []
    hook = autoencoder.decoder.register_forward_hook(lambda module, args, output: seen.append(output / 2 + 0.5))
    out = wrapped(PROMPT, generator=generator(), **arguments)
    hook.remove()
    assert len(seen) == 2
    for step, images in zip(out.trace.steps, seen, strict=False):
        torch.testing.assert_close(step.rewards[0], BrightnessReward()(images.clamp(0, 1), PROMPT))
    assert torch.equal(out.images, plain.images)
    assert torch.equal(out.rewards, plain.rewards)
    assert not torch.equal(out.trace.steps[0].rewards, plain.trace.steps[0].rewards)


@pytest.mark.parametrize("preview", [make_tiny_autoencoder(), ReducedResolution(2), lambda x: x[:, :3].sigmoid()])
def test_latent_output_is_scored_by_the_vae(preview):
    wrapped = steered(tiny.make_sd())
    wrapped.preview = preview
    out = wrapped(PROMPT, num_inference_steps=3, generator=generator(), output_type="latent")
    expected = BrightnessReward()(LatentDecoder(wrapped.pipe)(out.images), PROMPT)
    torch.testing.assert_close(out.rewards[0], expected)


def test_equal_rewards_still_give_the_stock_images():
    pipe, autoencoder = make_pair("sd")
    stock = pipe(
        PROMPT, num_inference_steps=STEPS, num_images_per_prompt=4, eta=1.0, generator=generator(), output_type="np"
    )
    wrapped = steered(pipe, constant)
    wrapped.preview = autoencoder
    out = wrapped(PROMPT, num_inference_steps=STEPS, num_images_per_prompt=4, generator=generator(), output_type="np")
    assert np.array_equal(out.images, stock.images)


def test_reduced_resolution_is_the_vae_on_averaged_latents():
    pipe = tiny.make_sdxl()
    wrapped = FKSteeringPipeline(pipe, reward=BrightnessReward(), preview="vae/2")
    assert wrapped.preview == ReducedResolution(2)
    latents = torch.randn(2, 4, 8, 8, generator=generator())
    averaged = latents.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    expected = pipe.vae.decode(averaged / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    images = decoder_of(wrapped)(latents)
    assert images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(images, expected.clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_reduced_resolution_steers_packed_latents():
    wrapped = steered(tiny.make_flux())
    wrapped.preview = "vae/2"
    out = wrapped(PROMPT, height=64, width=32, num_particles=2, num_inference_steps=3, output_type="pt")
    assert out.images.shape[-2:] == (64, 32)
    assert out.trace.steps[0].thumbnails.shape[-2:] == (32, 16)
    assert out.trace.steps[-1].thumbnails.shape[-2:] == (64, 32)


@pytest.mark.parametrize("factor", [1, 0, 2.0, True])
def test_wrong_factors(factor):
    with pytest.raises(ValueError, match="at least 2"):
        ReducedResolution(factor)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Folders in the official layout, in the place of the published repositories."""
    for name, known in PREVIEWS.items():
        make_tiny_autoencoder(latent_channels=known.latent_channels).save_pretrained(tmp_path / name)
    monkeypatch.setattr(decoding, "model_source", lambda name, what: str(tmp_path / name.split("/")[-1]))
    return tmp_path


def make_vae_of(name):
    known = PREVIEWS[name]
    return make_vae(
        latent_channels=known.latent_channels, scaling_factor=known.scaling_factor, shift_factor=known.shift_factor
    )


def pipeline_of(name):
    pipe = tiny.make_sd()
    pipe.register_modules(vae=make_vae_of(name))
    return pipe


@pytest.mark.parametrize("name", PREVIEWS)
def test_a_name_and_auto_load_the_autoencoder_of_the_family_once(shelf, name):
    wrapped = steered(pipeline_of(name))
    for asked in (name, "auto"):
        wrapped.preview = asked
        assert isinstance(wrapped.preview, AutoencoderTiny)
        assert wrapped.preview.config._name_or_path.endswith(name)
        assert wrapped.preview is wrapped.preview


@pytest.mark.parametrize("name", PREVIEWS)
@pytest.mark.parametrize("family", PREVIEWS)
def test_another_family_is_refused_by_name_by_folder_and_in_memory(shelf, name, family):
    if name == family:
        return
    wrapped = steered(pipeline_of(family))
    for asked in (name, str(shelf / name), AutoencoderTiny.from_pretrained(shelf / name)):
        with pytest.raises(ValueError, match=f"would make noise.*use '{family}'"):
            wrapped.preview = asked
    assert wrapped.preview is None


def test_an_unknown_family_is_refused_by_its_channels_and_its_scaling():
    pipe = tiny.make_sd()
    with pytest.raises(ValueError, match="latents of 16 channels, but this pipeline has latents of 4 channels"):
        FKSteeringPipeline(pipe, reward=constant, preview=make_tiny_autoencoder(latent_channels=16))
    with pytest.raises(ValueError, match=r"states scaling factor 0\.13025"):
        FKSteeringPipeline(pipe, reward=constant, preview=make_tiny_autoencoder(scaling_factor=0.13025))


def test_auto_without_a_tiny_autoencoder_names_the_remedy():
    pipe = tiny.make_sd()
    pipe.register_modules(vae=make_vae(scaling_factor=0.5))
    with pytest.raises(ValueError, match="'auto' knows no tiny autoencoder for latents of 4 channels.*'vae/2'"):
        FKSteeringPipeline(pipe, reward=constant, preview="auto")


@pytest.mark.parametrize(
    ("preview", "error", "message"),
    [
        ("taesd-xl", ValueError, "Did you mean 'taesdxl'"),
        ("nothing-like-it", ValueError, "Known are 'taesd'"),
        ("vae/1", ValueError, "at least 2"),
        (2, TypeError, "got int"),
        (make_vae(), TypeError, "got AutoencoderKL"),
    ],
)
def test_wrong_previews(preview, error, message):
    with pytest.raises(error, match=message):
        FKSteeringPipeline(tiny.make_sd(), reward=constant, preview=preview)


def test_from_pretrained_takes_a_folder(tmp_path):
    tiny.make_sd().save_pretrained(tmp_path / "sd")
    make_tiny_autoencoder().save_pretrained(tmp_path / "mine")
    wrapped = FKSteeringPipeline.from_pretrained(tmp_path / "sd", reward=constant, preview=tmp_path / "mine")
    assert isinstance(wrapped.preview, AutoencoderTiny)
    wrapped.set_progress_bar_config(disable=True)
    assert wrapped(PROMPT, num_inference_steps=3).trace.steps[0].thumbnails.shape[-2:] == (64, 64)


def test_precision_and_device_follow_the_pipeline():
    pipe, autoencoder = make_pair("sd")
    wrapped = FKSteeringPipeline(pipe, reward=constant, preview=autoencoder)
    pipe.vae.to(torch.bfloat16)
    images = decoder_of(wrapped)(torch.zeros(1, 4, 8, 8))
    assert autoencoder.dtype == torch.bfloat16
    assert images.dtype == torch.float32
    wrapped.to("meta")
    assert autoencoder.device == torch.device("meta")


def test_the_embedded_preview_is_of_the_embedded_model():
    assert PREVIEWS["shapes-preview"].repository in EMBEDDED_MODELS
    wrapped = FKSteeringPipeline.from_pretrained("shapes-sd", reward=constant)
    assert PREVIEWS["shapes-preview"].fits(wrapped.vae)
