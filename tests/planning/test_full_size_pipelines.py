"""Pipelines at full size without files: as many parameters as published, and whole enough to run without numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fk_reward.planning import published_models
from fk_reward.planning.full_size_pipelines import FULL_SIZE_PIPELINES, clip_tokenizer

AUTOENCODER = 83_653_863
PUBLISHED_PARAMETERS = {  # what num_parameters() says of the published files, as their model cards and users report
    "sd-2.1": {"unet": 865_910_724, "vae": AUTOENCODER, "text_encoder": 340_387_840},
    "sd-2.1-base": {"unet": 865_910_724, "vae": AUTOENCODER, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": AUTOENCODER,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


def parameters(name):
    components = FULL_SIZE_PIPELINES[name].make().components
    modules = {key: module for key, module in components.items() if isinstance(module, nn.Module)}
    return {key: sum(weight.numel() for weight in module.parameters()) for key, module in modules.items()}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert parameters(name) == PUBLISHED_PARAMETERS[name]


def test_one_block_less_is_noticed(monkeypatch):
    monkeypatch.setitem(published_models.SDXL_UNET, "transformer_layers_per_block", (1, 2, 9))
    with pytest.raises(AssertionError):
        test_parameters_are_as_many_as_published("sdxl")


@pytest.mark.parametrize(("name", "side"), [("sd-2.1", 768), ("sd-2.1-base", 512), ("sdxl", 1024)])
def test_images_are_of_the_published_size(name, side):
    pipe = FULL_SIZE_PIPELINES[name].make()
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == side


def test_the_dtype_and_the_numbers_of_the_scheduler():
    pipe = FULL_SIZE_PIPELINES["sd-2.1"].make(dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    assert pipe.scheduler.alphas_cumprod.device.type == "cpu"
    assert pipe.scheduler.alphas_cumprod.dtype == torch.float32
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_the_tokenizer_has_the_places_of_the_real_one():
    ids = clip_tokenizer("!")("a cat", padding="max_length", max_length=77).input_ids
    assert (ids[0], len(ids), ids[-1]) == (49406, 77, 0)
    assert 49407 in ids
