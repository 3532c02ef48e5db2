"""What stands in for files that are not there: as large as published, and made in one way for all who measure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from examples.benchmarks import steering_speed
from examples.benchmarks.steering_speed import SteeringSpeedSettings
from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import PREVIEWS
from fk_reward.planning import check, full_size_pipelines, plan, planned_models
from fk_reward.planning.planned_models import sized_preview, sized_reward, steered_pipeline

ENCODER, DECODER = 1_222_532, 1_222_531  # the table of github.com/madebyollin/taesd
CHANNEL = 9 * 64  # of the first convolution of the decoder, or the last of the encoder, which has a bias, too


def parameters(name):
    """Of the encoder and the decoder, for a pipeline with the autoencoder that the preview is for."""
    known = PREVIEWS[name]
    names = ("latent_channels", "scaling_factor", "shift_factor")
    vae = SimpleNamespace(config=SimpleNamespace(**{key: getattr(known, key) for key in names}))
    made = sized_preview(name, SimpleNamespace(vae=vae), device="meta", dtype=torch.float16)
    assert made.dtype == torch.float16
    return tuple(sum(weight.numel() for weight in part.parameters()) for part in (made.encoder, made.decoder))


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taesdxl", 4), ("taesd3", 16), ("taef1", 16)])
def test_tiny_autoencoders_have_the_published_parameters(name, channels):
    more = channels - 4
    assert parameters(name) == (ENCODER + more * (CHANNEL + 1), DECODER + more * CHANNEL)


def test_a_block_less_is_noticed(monkeypatch):
    from_config = planned_models.AutoencoderTiny.from_config
    narrow = {"num_decoder_blocks": (3, 3, 2, 1)}
    monkeypatch.setattr(
        planned_models.AutoencoderTiny, "from_config", lambda config, **_: from_config({**config, **narrow})
    )
    with pytest.raises(AssertionError):
        test_tiny_autoencoders_have_the_published_parameters("taesd", 4)


def test_an_embedded_preview_is_made_from_its_configuration():
    pipe = steered_pipeline("shapes-sd", reward="shapes-verifier", device="cpu", dtype=torch.float32)
    made = sized_preview("auto", pipe.pipe, device="cpu", dtype=torch.float32)
    pipe.preview = "shapes-preview"
    shapes = {name: weight.shape for name, weight in pipe.preview.named_parameters()}
    assert {name: weight.shape for name, weight in made.named_parameters()} == shapes


def test_parts_of_a_composition_have_random_weights():
    made = sized_reward("0.5*clipscore + 0.5*shapes-clipscore", device="meta")
    devices = {name: part.device.type for name, part in made.parts.items()}
    assert devices == {"clipscore": "meta", "shapes-clipscore": "cpu"}


def test_an_unknown_size_is_told():
    with pytest.raises(ValueError, match="size of reward 'llava-reward'"):
        sized_reward("llava-reward", device="cpu")


class Tiny:
    """Stands for a model of billions of parameters, and remembers how it was made."""

    def __init__(self, make):
        self.make_pipe, self.calls = make, []

    def make(self, *, device, dtype, seed):
        self.calls.append((str(device), dtype, seed))
        return self.make_pipe().to(dtype)


@pytest.fixture
def tiny_model(monkeypatch, tiny_sd):
    model = Tiny(tiny_sd)
    monkeypatch.setitem(full_size_pipelines.FULL_SIZE_PIPELINES, "sdxl", model)
    return model


def test_the_check_and_the_benchmark_make_the_same_pipeline(tiny_model, monkeypatch):
    settings = SteeringSpeedSettings(model="sdxl", reward="shapes-verifier", random_weights=True)
    benchmarked = steering_speed.make_pipeline(settings)
    monkeypatch.setattr(
        check, "steered_pipeline", lambda *args, device, **kw: steered_pipeline(*args, device="cpu", **kw)
    )
    made = plan("shapes-sd", reward="shapes-verifier", dtype="float32", preview="vae/2", solver="lcm-4", memory="1GB")
    checked = check._pipeline(replace(made, model="sdxl"))
    assert tiny_model.calls == [("cpu", torch.float32, 0)] * 2
    assert type(checked.pipe) is type(benchmarked.pipe)
    assert (checked.preview.factor, checked.solver.num_inference_steps) == (2, 4)
    assert checked.reward.card == benchmarked.reward.card


def test_without_random_weights_the_model_is_loaded(tiny_model, monkeypatch):
    asked = []
    monkeypatch.setattr(FKSteeringPipeline, "from_pretrained", lambda name, **_: asked.append(name) or MockPipeline())
    steered_pipeline("sdxl", reward="clipscore", device="cpu", dtype=torch.float32, random_weights=False)
    assert (asked, tiny_model.calls) == (["sdxl"], [])


class MockPipeline:
    """Takes what is done to a loaded pipeline."""

    def set_progress_bar_config(self, *, disable):
        assert disable

    def to(self, device):
        return self


def test_with_offload_weights_are_made_on_the_cpu(tiny_model, monkeypatch):
    offloaded = []
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.enable_model_cpu_offload", lambda pipe, device: offloaded.append(device)
    )
    options = {"device": "cpu", "dtype": torch.float32, "model_offload": True}
    steered_pipeline("sdxl", reward="shapes-verifier", **options)
    assert (offloaded, tiny_model.calls) == (["cpu"], [("cpu", torch.float32, 0)])
