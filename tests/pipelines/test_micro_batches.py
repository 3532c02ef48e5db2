"""Micro-batches give the images of the undivided batch in every family, and need the memory of a part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ControlNetModel,
    FirstBlockCacheConfig,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig

from fk_reward import BatchSizes, FKSteeringPipeline
from fk_reward.models import resolve_model
from fk_reward.pipelines.batching import BatchLayout, MicroBatches, batch_rows
from fk_reward.pipelines.epilogue import NoLoopError
from fk_reward.planning.meta_device import LiveBytes
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered
from tests.pipelines.test_families import EXTRA, MAKERS, make

PROMPTS = ["a red circle", "two blue squares"]
ARGUMENTS = {
    "num_particles": 3,
    "num_images_per_prompt": 3,
    "num_inference_steps": 3,
    "reward_scale": 1e4,
    "ess_threshold": 1.0,
    "output_type": "pt",
}
GUIDANCE = {True: {}, False: {"guidance_scale": 1.0}}
FLUX_GUIDANCE = {True: {"true_cfg_scale": 3.0, "negative_prompt": ["", "blue"]}, False: {}}
TOLERANCE = 1e-5
"""Of pixels in [0, 1] and of rewards: what the order of float32 sums changes."""


def denoiser(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def watched(module):
    """Put a function before the module's forward that keeps the rows of each call; returns the list."""
    rows, forward = [], module.forward

    def counting(*args, **kwargs):
        rows.append(batch_rows(args, kwargs))
        return forward(*args, **kwargs)

    module.forward = counting
    return rows


def call(pipe, reward=None, **arguments):
    return steered(pipe, reward)(PROMPTS, generator=generator(), **ARGUMENTS | arguments)


def assert_same(split, whole):
    torch.testing.assert_close(split.images, whole.images, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(split.rewards, whole.rewards, rtol=0, atol=TOLERANCE)
    for mine, other in zip(split.trace.steps, whole.trace.steps, strict=True):
        assert (mine.ancestors is None) == (other.ancestors is None)
        assert mine.ancestors is None or torch.equal(mine.ancestors, other.ancestors)
    for name in ("num_model_calls", "num_model_rows", "num_decode_calls", "num_reward_calls"):
        assert getattr(split.trace, name) == getattr(whole.trace, name)


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("family", MAKERS)
def test_images_are_those_of_the_undivided_batch(family, guidance):
    """Six particles, four at a time, so that the last micro-batch is smaller and one holds both prompts."""
    pipe = make(family)
    arguments = EXTRA.get(family, {}) | (FLUX_GUIDANCE if family == "flux" else GUIDANCE)[guidance]
    rows = watched(denoiser(pipe))
    whole = call(pipe, **arguments)
    assert any(step.ancestors is not None for step in whole.trace.steps)
    undivided = rows.copy()
    rows.clear()
    assert_same(call(pipe, particle_batch_size=4, decode_batch_size=4, reward_batch_size=4, **arguments), whole)
    blocks = 2 if guidance and family != "flux" else 1
    assert undivided == [6 * blocks] * len(undivided)
    assert rows == [4 * blocks, 2 * blocks] * len(undivided)


def test_a_size_of_all_particles_is_the_undivided_call():
    pipe = tiny.make_sd()
    rows = watched(pipe.unet)
    whole = call(pipe)
    split = call(pipe, particle_batch_size=6, decode_batch_size=64)
    assert set(rows) == {12}
    assert torch.equal(split.images, whole.images)


def sdxl_inputs(num_rows):
    def normal(*shape):
        return torch.randn(num_rows, *shape, generator=numbers)

    numbers = generator(3)
    time_ids = torch.randint(8, 64, (num_rows, 6), generator=numbers).float()
    added = {"text_embeds": normal(32), "time_ids": time_ids}
    return {"encoder_hidden_states": normal(9, 64), "added_cond_kwargs": added}, normal(4, 8, 8)


def sdxl_difference():
    """Greatest difference of a UNet's output in micro-batches, where every row has conditions of its own."""
    pipe = tiny.make_sdxl()
    conditions, sample = sdxl_inputs(10)
    outputs = []
    with torch.no_grad():
        for size in (None, 2):
            batches = MicroBatches(BatchSizes(particle_batch_size=size), num_particles=lambda: 5, found={})
            with batches.splitting(pipe):
                outputs.append(pipe.unet(sample, torch.tensor(500), **conditions).sample)
    return (outputs[0] - outputs[1]).abs().max()


def test_every_condition_goes_with_its_row():
    assert sdxl_difference() < TOLERANCE


@pytest.mark.parametrize("forgotten", ["encoder_hidden_states", "text_embeds", "time_ids"])
def test_saboteur_a_split_that_forgets_one_condition_is_noticed(forgotten, monkeypatch):
    of_blocks = BatchLayout._of_blocks

    def forgetful(self, value, pick, name):
        def first_rows(blocks):
            return blocks[:, : pick(blocks).shape[1]]

        return of_blocks(self, value, first_rows if name == forgotten else pick, name)

    monkeypatch.setattr(BatchLayout, "_of_blocks", forgetful)
    assert sdxl_difference() > 10 * TOLERANCE


def flux_difference():
    """64 x 64 pixels are 16 tokens, as many as there are particles."""
    pipe = make("flux")
    arguments = {"num_particles": 16, "num_images_per_prompt": 16, "num_inference_steps": 2, "output_type": "pt"}
    whole, split = (
        steered(pipe)("a red circle", generator=generator(), particle_batch_size=size, **arguments).images
        for size in (None, 5)
    )
    return (whole - split).abs().max()


def test_positions_are_not_particles():
    assert flux_difference() < TOLERANCE


def test_saboteur_positions_split_like_particles_are_noticed(monkeypatch):
    monkeypatch.setattr("fk_reward.pipelines.batching.POSITIONS", ())
    with pytest.raises(RuntimeError):
        flux_difference()


def pag_pipe():
    pipe = StableDiffusionPAGPipeline(
        **tiny.make_sd().components, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_attention_that_takes_the_batch_apart_finds_its_blocks():
    """Perturbed attention expects three blocks of rows: unconditional, conditional, perturbed."""
    pipe = pag_pipe()
    rows = watched(pipe.unet)
    whole = call(pipe, pag_scale=5.0)
    rows.clear()
    assert_same(call(pipe, pag_scale=5.0, particle_batch_size=4), whole)
    assert rows[:2] == [12, 6]


def test_saboteur_parts_that_ignore_the_blocks_are_noticed(monkeypatch):
    monkeypatch.setattr(BatchLayout, "of", classmethod(lambda cls, rows, *, num_particles: cls(1, rows)))
    pipe = pag_pipe()
    with pytest.raises(AssertionError):
        assert_same(call(pipe, pag_scale=5.0, particle_batch_size=3), call(pipe, pag_scale=5.0))


def test_controlnet_and_its_residuals():
    components = tiny.make_sd().components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        controlnet = ControlNetModel.from_unet(
            components["unet"], conditioning_embedding_out_channels=(4, 4, 4, 4)
        ).eval()
        for parameter in controlnet.parameters():  # its outputs begin as zeros
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    pipe = StableDiffusionControlNetPipeline(**components, controlnet=controlnet, requires_safety_checker=False)
    rows = watched(controlnet)
    image = torch.rand(2, 3, 64, 64, generator=generator(2))  # one for each prompt
    whole = call(pipe, image=image)
    rows.clear()
    assert_same(call(pipe, image=image, particle_batch_size=4), whole)
    assert rows[:2] == [8, 4]


def test_lora():
    pipe = tiny.make_sd()
    plain = call(pipe, particle_batch_size=4)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    whole = call(pipe)
    assert_same(call(pipe, particle_batch_size=4), whole)
    assert not torch.allclose(plain.images, whole.images, atol=100 * TOLERANCE)


def test_latents_are_decoded_and_images_scored_in_batches():
    pipe, scored = tiny.make_sd(), []

    class Listening(BrightnessReward):
        def score(self, images, prompts):
            scored.append(len(images))
            return super().score(images, prompts)

    reward, decoded = Listening(), []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    out = call(pipe, reward, decode_batch_size=4, reward_batch_size=5)
    assert decoded == [4, 2] * len(out.trace.steps)
    assert scored == [5, 1] * len(out.trace.steps)
    decoded.clear()
    call(pipe, reward, decode_batch_size=4, output_type="latent")
    assert decoded == [4, 2] * len(out.trace.steps)
    assert reward.batch_size is None


def test_a_decoder_of_ones_own_gets_batches():
    seen = []

    def decode(latents):
        seen.append(len(latents))
        return torch.full((len(latents), 3, 8, 8), 0.5)

    wrapped = steered(tiny.make_sd())
    wrapped.preview = decode
    wrapped(PROMPTS, num_inference_steps=3, decode_batch_size=5)
    assert set(zip(seen[::2], seen[1::2], strict=True)) == {(5, 3)}


def test_finished_latents_that_only_the_preview_can_decode_get_batches(monkeypatch):
    seen = []

    def decode(latents):
        seen.append(len(latents))
        return torch.full((len(latents), 3, 8, 8), 0.5)

    def no_loop(frame):
        raise NoLoopError("no loop")

    monkeypatch.setattr("fk_reward.pipelines.running_call.Epilogue.of", no_loop)
    wrapped = steered(tiny.make_sd())
    wrapped.preview = decode
    wrapped(PROMPTS, num_inference_steps=3, num_resamples=0, output_type="latent", decode_batch_size=5)
    assert seen == [5, 3]


def test_defaults_of_the_pipeline_and_keywords_of_the_call():
    pipe = tiny.make_sd()
    rows = watched(pipe.unet)
    wrapped = FKSteeringPipeline(pipe, reward=BrightnessReward(), batch_sizes=BatchSizes(particle_batch_size=1))
    wrapped("x", num_inference_steps=1)
    assert rows == [2] * 4
    rows.clear()
    wrapped("x", num_inference_steps=1, particle_batch_size=3)
    assert rows == [6, 2]
    assert wrapped.batch_sizes == BatchSizes(particle_batch_size=1)
    with pytest.raises(ValueError, match="particle_batch_size should be at least 1"):
        wrapped("x", particle_batch_size=0)
    with pytest.raises(TypeError, match="Did you mean particle_batch_size"):
        wrapped("x", particle_batchsize=2)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    pipe, reward = tiny.make_sd(), BrightnessReward()
    wrapped = steered(pipe, reward)
    sizes = {"particle_batch_size": 2, "decode_batch_size": 2, "reward_batch_size": 2}
    wrapped("x", num_inference_steps=2)
    before = [set(vars(thing)) for thing in (pipe, pipe.unet, pipe.vae)]
    if fails:
        pipe.vae.decoder.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            wrapped("x", num_inference_steps=2, **sizes)
    else:
        wrapped("x", num_inference_steps=2, **sizes)
    assert [set(vars(thing)) for thing in (pipe, pipe.unet, pipe.vae)] == before
    assert reward.batch_size is None
    assert not pipe.unet._forward_hooks


def test_a_cache_of_the_denoiser_is_refused():
    pipe = make("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="disable_cache"):
        steered(pipe)("x", num_inference_steps=2, particle_batch_size=2)


def test_a_denoiser_that_is_not_known_is_refused():
    wrapped = steered(tiny.make_sd())
    wrapped.unet = None
    with pytest.raises(ValueError, match="no unet and no transformer"):
        wrapped("x", num_inference_steps=2, particle_batch_size=2)


@pytest.fixture(scope="module")
def unet():
    return UNet2DConditionModel.from_pretrained(resolve_model("shapes-sd"), subfolder="unet")


def peak(unet, num_particles, particle_batch_size=None):
    """Peak bytes of one forward pass with guidance, beyond its weights and inputs."""
    rows = 2 * num_particles
    sample, states = torch.zeros(rows, 4, 16, 16), torch.zeros(rows, 16, 160)
    sizes = BatchSizes(particle_batch_size=particle_batch_size)
    batches = MicroBatches(sizes, num_particles=lambda: num_particles, found={})
    with torch.no_grad(), batches.splitting(SimpleNamespace(unet=unet)), LiveBytes() as memory:
        unet(sample, torch.tensor(500), encoder_hidden_states=states)
    return memory.peak


def test_64_particles_fit_where_8_do(unet):
    small = peak(unet, 8)
    assert peak(unet, 64, particle_batch_size=8) < 1.3 * small
    assert peak(unet, 64) > 4 * small  # saboteur: undivided
