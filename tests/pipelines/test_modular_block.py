"""A modular pipeline of Diffusers with our block in the place of its denoising block."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import (
    StableDiffusionXLInputStep,
    StableDiffusionXLPrepareAdditionalConditioningStep,
    StableDiffusionXLPrepareLatentsStep,
    StableDiffusionXLSetTimestepsStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep

from fk_reward.pipelines import SteeredDenoise

BLOCKS = {
    "text_encoder": StableDiffusionXLTextEncoderStep,
    "input": StableDiffusionXLInputStep,
    "set_timesteps": StableDiffusionXLSetTimestepsStep,
    "prepare_latents": StableDiffusionXLPrepareLatentsStep,
    "prepare_add_cond": StableDiffusionXLPrepareAdditionalConditioningStep,
    "denoise": StableDiffusionXLDenoiseStep,
    "decode": StableDiffusionXLDecodeStep,
}
SIZE = {"height": 64, "width": 64, "num_inference_steps": 6}


def redness(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.fixture(scope="module")
def components(tiny_sdxl):
    stock = tiny_sdxl()
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = EulerAncestralDiscreteScheduler.from_config(stock.scheduler.config)
    return {name: getattr(stock, name) for name in names} | {"scheduler": scheduler}


@pytest.fixture
def make(components):
    """A pipeline of blocks with another denoising block; None for the stock one."""

    def made(block=None):
        blocks = SequentialPipelineBlocks.from_blocks_dict({name: kind() for name, kind in BLOCKS.items()})
        if block is not None:
            blocks.sub_blocks["denoise"] = block
        pipe = blocks.init_pipeline()
        pipe.update_components(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


def steered(**options):
    return SteeredDenoise(StableDiffusionXLDenoiseStep(), StableDiffusionXLDecodeStep(), redness, **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_best_of_n_is_the_best_of_the_stock_images(make):
    """Nothing moves, so that the finished images are those of the pipeline itself, bit for bit."""
    call = {"prompt": ["a dog", "a cat"], "num_images_per_prompt": 3, "output_type": "pt", **SIZE}
    plain = make()(generator=seeded(), output="images", **call)
    state = make(steered(search="best-of-n", num_images=2))(generator=seeded(), **call)
    rewards = redness(plain.float(), None).view(2, 3)
    best, order = rewards.sort(dim=1, descending=True)
    torch.testing.assert_close(state.get("rewards"), best[:, :2], rtol=0, atol=1e-6)
    expected = plain.view(2, 3, *plain.shape[1:]).gather(
        1, order[:, :2, None, None, None].expand(-1, -1, *plain.shape[1:])
    )
    torch.testing.assert_close(state.get("images"), expected.flatten(0, 1), rtol=0, atol=1e-5)


def test_fk_copies_particles_of_their_own_prompt_and_repeats_with_the_seed(make):
    pipe = make(steered(search="fk", reward_scale=1e4, num_images=4, selection="sample"))
    call = {"prompt": ["a dog", "a cat"], "num_images_per_prompt": 4, "output_type": "latent", **SIZE}
    first, second = (pipe(generator=seeded(), output="images", **call) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    plain = make()(generator=seeded(), output="images", **call)
    assert not torch.equal(first, plain)
    assert first.shape == plain.shape


@pytest.mark.parametrize(("search", "settings"), [("pruning", {}), ("svdd", {"reward_scale": 100.0})])
def test_searches_that_change_the_number_of_particles(make, search, settings):
    """Embeddings and everything else in the state of the loop shrink and grow with the latents."""
    pipe = make(steered(search=search, **settings))
    images = pipe(
        prompt="a dog", num_images_per_prompt=6, generator=seeded(), output="images", output_type="pt", **SIZE
    )
    assert images.shape == (1, 3, 64, 64)


def test_the_reward_is_not_copied_with_the_block():
    block = steered()
    assert copy.deepcopy(block)._reward is block._reward


def test_a_block_without_a_loop_is_refused(make):
    pipe = make(SteeredDenoise(_Nothing(), StableDiffusionXLDecodeStep(), redness))
    with pytest.raises(ValueError, match="_Nothing has no loop of blocks in it"):
        pipe(prompt="a dog", num_images_per_prompt=4, generator=seeded(), **SIZE)


class _Nothing(StableDiffusionXLDecodeStep):
    pass
