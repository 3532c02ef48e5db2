"""Whatever a pipeline keeps for each particle follows the ancestors: copies with equal noise stay equal."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    DDIMScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from diffusers.hooks import (
    HookRegistry,
    MagCacheConfig,
    ModelHook,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.text_kv_cache import TextKVCacheBlockHook, TextKVCacheBlockState, TextKVCacheState
from diffusers.models.attention_processor import AttnProcessor2_0

from fk_reward.pipelines import conditions, pipeline_state
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered
from tests.tiny.families import FAMILIES

NUM_PARTICLES, STEPS = 4, 8
ALWAYS = (-1, 1001)
ONE_TAKES_ALL = {"reward_scale": 1e9, "ess_threshold": 1.0, "num_resamples": 1, "resample_start": 0.5}
EQUAL_NOISE = {
    **ONE_TAKES_ALL,
    **{"num_particles": NUM_PARTICLES, "num_images_per_prompt": NUM_PARTICLES, "num_inference_steps": STEPS},
    "output_type": "latent",
}


def make_flux():
    pipe = tiny.make_flux()
    pipe.scheduler = FlowMatchSDEScheduler.from_config(pipe.scheduler.config)
    return pipe


def pyramid(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=ALWAYS,
        spatial_attention_block_identifiers=("transformer_blocks",),
        cross_attention_block_skip_range=3,
        cross_attention_timestep_skip_range=ALWAYS,
        cross_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )


def faster(pipe, *, distilled):
    return FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 990),  # it has to compute once
        unconditional_batch_timestep_skip_range=ALWAYS,
        unconditional_batch_skip_range=3,
        tensor_format="BCHW",
        is_guidance_distilled=distilled,
        current_timestep_callback=(lambda: pipe.current_timestep) if distilled else lambda: 500,
    )


def taylor(pipe):
    return TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, max_order=2
    )


def mag(pipe):
    return MagCacheConfig(
        mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS, threshold=10.0, retention_ratio=0.2, max_skip_steps=2
    )


FLUX_CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=10.0),
    "pyramid": pyramid,
    "faster": functools.partial(faster, distilled=True),
    "taylor": taylor,
    "mag": mag,
}
PIXART_CACHES = {  # whose batch is twice the particles, and which knows no enable_cache
    "pyramid": lambda pipe: apply_pyramid_attention_broadcast(pipe.transformer, pyramid(pipe)),
    "mag": lambda pipe: apply_mag_cache(pipe.transformer, mag(pipe)),
    "faster": lambda pipe: apply_faster_cache(pipe.transformer, faster(pipe, distilled=False)),
}


def cached_flux(name):
    pipe = make_flux()
    pipe.transformer.enable_cache(FLUX_CACHES[name](pipe))
    return pipe


def cached_pixart(name):
    pipe = tiny.make_pixart()
    PIXART_CACHES[name](pipe)
    return pipe


class Equalising(BrightnessReward):
    """From the first scores on, all particles draw the same noise."""

    def __init__(self, slots):
        self.slots = slots

    def score(self, images, prompts):
        for slot in self.slots:
            slot.set_state(self.slots[0].get_state())
        return super().score(images, prompts)


def difference_between_copies(pipe, *, preview=None, **arguments):
    """How far copies of one particle are apart at the end, though all of them draw the same noise."""
    slots = [torch.Generator().manual_seed(seed) for seed in range(NUM_PARTICLES)]
    call = {**EQUAL_NOISE, **arguments, "prompt": "a red circle", "generator": slots}
    wrapped = steered(pipe, Equalising(slots))
    wrapped.preview = preview
    out = wrapped(**call)
    assert out.trace.steps[0].ancestors.unique().numel() == 1
    assert out.trace.steps[0].rewards.unique().numel() == NUM_PARTICLES
    return (out.images - out.images[:1]).abs().max()


def with_image_embeddings():
    """Kandinsky's prior draws an image embedding for each particle."""
    family = FAMILIES["KandinskyV22CombinedPipeline"]
    pipe = family.build()
    pipe.scheduler = pipe.decoder_pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def inpainting(family):
    pipe = AutoPipelineForInpainting.from_pipe({"sd": tiny.make_sd, "sdxl": tiny.make_sdxl}[family]())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inpainting_arguments(strength=1.0):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    image = torch.rand(1, 3, 64, 64, generator=generator())
    return {"image": image, "mask_image": mask, "strength": strength, "height": 64, "width": 64}


def hunyuan_image():
    family = FAMILIES["HunyuanImagePipeline"]
    pipe = family.build()
    pipe.scheduler = FlowMatchSDEScheduler.from_config(pipe.scheduler.config)
    pipe.guider = AdaptiveProjectedMixGuidance(
        guidance_scale=3.5,
        adaptive_projected_guidance_scale=10.0,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_start_step=1,
    )
    return pipe, family.call_arguments(["a red circle"])


class TestCopiesStayEqual:
    @pytest.mark.parametrize("name", FLUX_CACHES)
    def test_caches_of_flux(self, name):
        assert difference_between_copies(cached_flux(name), height=64, width=64) == 0.0

    @pytest.mark.parametrize("name", PIXART_CACHES)
    def test_caches_of_a_batch_with_guidance(self, name):
        pipe = cached_pixart(name)
        assert difference_between_copies(pipe, use_resolution_binning=False) == 0.0

    @pytest.mark.parametrize("strength", [1.0, 0.8])
    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_noise_of_the_known_region(self, family, strength):
        arguments = inpainting_arguments(strength)
        assert difference_between_copies(inpainting(family), **arguments) == 0.0


@pytest.mark.parametrize("name", FLUX_CACHES)
def test_a_cache_that_is_not_gathered_fails_the_same_check(name, monkeypatch):
    monkeypatch.setattr(pipeline_state.CacheStates, "gather", lambda *args: None)
    assert difference_between_copies(cached_flux(name), height=64, width=64) > 1e-4


@pytest.mark.parametrize("name", PIXART_CACHES)
def test_so_does_one_of_a_batch_with_guidance(name, monkeypatch):
    monkeypatch.setattr(pipeline_state.CacheStates, "gather", lambda *args: None)
    assert difference_between_copies(cached_pixart(name), use_resolution_binning=False) > 1e-5


def test_so_does_noise_of_the_known_region(monkeypatch):
    monkeypatch.setattr(pipeline_state.KnownRegionNoise, "gather", lambda *args: None)
    assert difference_between_copies(inpainting("sd"), **inpainting_arguments()) > 1e-3


def test_momentum_of_a_guider(monkeypatch):
    pipe, arguments = hunyuan_image()
    assert difference_between_copies(pipe, **arguments, num_inference_steps=4) == 0.0
    monkeypatch.setattr(pipeline_state.GuiderStates, "gather", lambda *args: None)
    assert difference_between_copies(pipe, **arguments, num_inference_steps=4) > 1e-5


def test_conditions_of_single_particles(monkeypatch):
    pipe = with_image_embeddings()
    arguments = FAMILIES["KandinskyV22CombinedPipeline"].call_arguments(["a red circle"])
    arguments["preview"] = lambda latents: latents[:, :3].sigmoid()
    assert difference_between_copies(pipe, **arguments) == 0.0
    monkeypatch.setattr(conditions.Conditions, "gather", lambda *args: None)
    assert difference_between_copies(pipe, **arguments) > 1e-3


FUNNEL = {
    **{"num_particles": 6, "final_particles": 2, "num_images_per_prompt": 2, "num_resamples": 2},
    **{"resample_start": 0.2, "resample_stop": 0.8},
    **{"num_inference_steps": STEPS, "reward_scale": 1e4, "output_type": "pt"},
}


@pytest.mark.parametrize(
    ("pipe", "extra"),
    [
        *((functools.partial(cached_flux, name), {}) for name in FLUX_CACHES),
        *((functools.partial(cached_pixart, name), {"use_resolution_binning": False}) for name in PIXART_CACHES),
    ],
    ids=[*(f"flux {name}" for name in FLUX_CACHES), *(f"pixart {name}" for name in PIXART_CACHES)],
)
def test_a_population_that_shrinks_takes_its_caches_along(pipe, extra):
    """Two prompts in one call against each by itself: every row is that of its particle."""
    prompts, pipe = ["a red circle", "two blue squares"], pipe()
    slots = [[torch.Generator().manual_seed(6 * place + k) for k in range(6)] for place in range(4)]
    together = steered(pipe)(prompts, generator=slots[0] + slots[1], **FUNNEL, **extra)
    slots = [[torch.Generator().manual_seed(6 * place + k) for k in range(6)] for place in range(2)]
    alone = [steered(pipe)(prompt, generator=slots[i], **FUNNEL, **extra) for i, prompt in enumerate(prompts)]
    assert [step.num_particles for step in together.trace.steps] == [6, 3, 2]
    torch.testing.assert_close(together.images, torch.cat([out.images for out in alone]), rtol=0, atol=1e-5)


class _Counting(ModelHook):
    _is_stateful = True

    def __init__(self):
        super().__init__()
        self.seen = None

    def pre_forward(self, module, *args, **kwargs):
        self.seen = args[0] if args else next(iter(kwargs.values()))
        return args, kwargs

    def reset_state(self, module):
        self.seen = None
        return module


class _Unmarked(_Counting):
    _is_stateful = False


class _Remembering(AttnProcessor2_0):
    last = None

    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        self.last = output
        return output


def _with_hook(hook):
    pipe = make_flux()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.transformer_blocks[0]).register_hook(hook, "mine")
    return pipe


def _with_processor():
    pipe = tiny.make_sd()
    pipe.unet.set_attn_processor(_Remembering())
    return pipe


def _with_guider():
    class Own(AdaptiveProjectedMixGuidance):
        pass

    pipe = make_flux()
    pipe.guider = Own()
    return pipe


UNKNOWN = {
    "_Counting": lambda: _with_hook(_Counting()),
    "_Unmarked": lambda: _with_hook(_Unmarked()),
    "_Remembering": _with_processor,
    "Own": _with_guider,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_state_is_refused_by_name_before_the_first_step(name, monkeypatch):
    pipe = UNKNOWN[name]()

    @functools.wraps(type(pipe.scheduler).step)
    def never(self, *args, **kwargs):
        pytest.fail("a step was made")

    monkeypatch.setattr(type(pipe.scheduler), "step", never)
    with pytest.raises(ValueError, match=rf"{name} .*search='best-of-n' \(num_resamples=0"):
        steered(pipe)("a red circle", num_inference_steps=4, generator=generator())


@pytest.mark.parametrize("name", UNKNOWN)
def test_it_may_run_where_nothing_is_copied(name):
    steered(UNKNOWN[name]())("a red circle", num_inference_steps=2, num_resamples=0, generator=generator())


def test_a_cache_that_knows_prompts_by_their_address_cannot_shrink():
    hook = TextKVCacheBlockHook(StateManager(TextKVCacheState), StateManager(TextKVCacheBlockState))
    with pytest.raises(ValueError, match="TextKVCache .* leave final_particles out"):
        steered(_with_hook(hook))("a red circle", generator=generator(), **FUNNEL)


@pytest.mark.parametrize("settings", [FUNNEL, {"search": "pruning"}], ids=["funnel", "pruning"])
def test_a_mask_for_every_particle_cannot_shrink(settings):
    message = "keeps mask and image for every particle .* leave final_particles out, and take no other search"
    with pytest.raises(ValueError, match=message):
        steered(inpainting("sd"))("a red circle", generator=generator(), **settings, **inpainting_arguments())


def test_functional_caches_cannot_be_split_into_micro_batches():
    pipe = make_flux()
    apply_taylorseer_cache(pipe.transformer, taylor(pipe))
    with pytest.raises(ValueError, match="keeps a cache .*TaylorSeerCacheHook.* leave particle_batch_size out"):
        steered(pipe)("a red circle", particle_batch_size=2, num_inference_steps=2)


def test_an_error_leaves_no_cache_behind():
    """The next call may have another batch, and would go on with the rows of this one."""
    pipe = cached_pixart("pyramid")
    call = {"num_inference_steps": STEPS, "use_resolution_binning": False, "output_type": "pt"}
    fresh = steered(cached_pixart("pyramid"))("a red circle", num_particles=2, generator=generator(), **call)

    class Broken(BrightnessReward):
        def score(self, images, prompts):
            raise OSError("reward server is down")

    with pytest.raises(OSError, match="is down"):
        steered(pipe, Broken())("a red circle", num_particles=2, generator=generator(1), **call)
    again = steered(pipe)("a red circle", num_particles=2, generator=generator(), **call)
    assert torch.equal(again.images, fresh.images)


@pytest.mark.parametrize("name", FLUX_CACHES)
def test_one_particle_with_a_cache_is_the_stock_image(name):
    call = {"num_inference_steps": STEPS, "output_type": "pt", "height": 64, "width": 64}
    torch.manual_seed(0)
    stock = cached_flux(name)("a red circle", **call).images
    torch.manual_seed(0)
    out = steered(cached_flux(name))("a red circle", num_particles=1, **call)
    assert torch.equal(out.images, stock)
