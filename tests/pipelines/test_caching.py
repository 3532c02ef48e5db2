"""Cached denoisers: stock images where all is computed, the reference's outputs where not, caches that follow."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from torch import nn

from fk_reward.pipelines import (
    CacheSchedule,
    Compilation,
    apply_cache_schedule,
    cache_components,
    pipeline_state,
    remove_cache_schedule,
    speed_up,
)
from fk_reward.pipelines.caching import applied_cache_schedule, cache_schedule
from fk_reward.pipelines.hooks import main_denoiser
from fk_reward.planning.cache_costs import count_cache_costs
from fk_reward.planning.meta_device import Operations
from tests import tiny
from tests.pipelines.calls import generator, steered
from tests.pipelines.test_pipeline_state import difference_between_copies, make_flux

NUM_STEPS = 8
FAMILIES = {
    "sd": (tiny.make_sd, {}),
    "sdxl": (tiny.make_sdxl, {}),
    "pixart": (tiny.make_pixart, {"use_resolution_binning": False}),
    "sd3": (tiny.make_sd3, {}),
    "flux": (tiny.make_flux, {"height": 64, "width": 64}),
    "flux with guidance": (
        tiny.make_flux,
        {"height": 64, "width": 64, "true_cfg_scale": 3.0, "negative_prompt": "bad"},
    ),
}


def make_sdxl():
    return tiny.make_sdxl(scheduler=DDIMScheduler.from_config(tiny.make_sdxl().scheduler.config, clip_sample=False))


STEERED = {name: FAMILIES[name] for name in ("sd", "pixart")} | {
    "sdxl": (make_sdxl, {}),
    "flux": (make_flux, FAMILIES["flux"][1]),
    "flux with guidance": (make_flux, FAMILIES["flux with guidance"][1]),
}


def drawn(pipe, arguments, *, num_steps=NUM_STEPS, seed=0, **more):
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)  # SD3 and Flux do not pass their generator to the scheduler
    out = pipe("a red circle", num_inference_steps=num_steps, generator=generator(seed), output_type="latent",
               **arguments, **more)  # fmt: skip
    return out.images


def every(pipe, interval, **options):
    return CacheSchedule.every(cache_components(main_denoiser(pipe)), num_steps=NUM_STEPS, interval=interval, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_computed_is_the_stock_pipeline_bit_for_bit(family):
    make, arguments = FAMILIES[family]
    pipe = make()
    stock = drawn(pipe, arguments)
    before = {name: set(vars(part)) for name, part in main_denoiser(pipe).named_modules()}
    apply_cache_schedule(pipe, every(pipe, 1))
    assert torch.equal(drawn(pipe, arguments), stock)
    apply_cache_schedule(pipe, every(pipe, 3))
    cached = drawn(pipe, arguments)
    assert not torch.equal(cached, stock)
    assert torch.equal(drawn(pipe, arguments), cached)  # nothing is left of the run before
    remove_cache_schedule(pipe)
    assert torch.equal(drawn(pipe, arguments), stock)
    assert {name: set(vars(part)) for name, part in main_denoiser(pipe).named_modules()} == before


class Replayed:
    """An oracle without hooks of Diffusers: PyTorch's own forward hooks put earlier outputs in place."""

    def __init__(self, denoiser, schedule):
        self.step, self.kept, self.schedule = -1, {}, schedule
        self.handles = [denoiser.register_forward_pre_hook(self.next_step)]
        for column, component in enumerate(schedule.components):
            layer = cache_components(denoiser)[component][0]
            self.handles.append(layer.register_forward_hook(lambda _, __, out, c=column: self.output(c, out)))

    def next_step(self, *_):
        self.step += 1

    def output(self, column, out):
        if column not in self.kept or self.schedule.steps[self.step][column]:
            self.kept[column] = out
        return self.kept[column]


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "sd3", "flux"])
def test_a_random_schedule_is_what_pytorchs_own_hooks_make(family):
    make, arguments = FAMILIES[family]
    pipe = make()
    components = tuple(cache_components(main_denoiser(pipe)))
    random = torch.rand(NUM_STEPS, len(components), generator=generator(1)) < 0.4
    schedule = CacheSchedule(components=components, steps=tuple(map(tuple, random.tolist())))
    apply_cache_schedule(pipe, schedule)
    cached = drawn(pipe, arguments)
    remove_cache_schedule(pipe)
    replayed = Replayed(main_denoiser(pipe), schedule)
    expected = drawn(pipe, arguments)
    for handle in replayed.handles:
        handle.remove()
    torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", STEERED)
def test_caches_go_with_the_particles(family, monkeypatch):
    make, arguments = STEERED[family]
    pipe = make()
    apply_cache_schedule(pipe, every(pipe, 3))
    assert difference_between_copies(pipe, **arguments) == 0.0
    monkeypatch.setattr(pipeline_state.CacheStates, "gather", lambda *args: None)
    assert difference_between_copies(pipe, **arguments) > 1e-5


def test_particles_that_are_dropped_end_as_they_would_have_ended_alone():
    pipe = steered(tiny.make_sd())
    apply_cache_schedule(pipe, every(pipe.pipe, 3))
    seeds = [generator(seed) for seed in range(6)]
    out = pipe("a red circle", search="pruning", num_particles=6, keep=(2,), at=(0.5,), num_images_per_prompt=2,
               generator=seeds, num_inference_steps=NUM_STEPS, output_type="latent")  # fmt: skip
    plain = torch.cat([drawn(pipe.pipe, {}, seed=seed) for seed in range(6)])
    for image in out.images:
        assert (plain - image).abs().amax((1, 2, 3)).min() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_a_cached_run_makes(family):
    make, arguments = FAMILIES[family]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    costs = count_cache_costs(pipe, **arguments)
    components = tuple(cache_components(main_denoiser(pipe)))
    assert set(costs.components) == set(components) and min(costs.components.values()) > 0
    random = torch.rand(NUM_STEPS, len(components), generator=generator(2)) < 0.5
    schedule = CacheSchedule(components=components, steps=tuple(map(tuple, random.tolist())))

    def counted(applied):
        with cache_schedule(pipe, applied), Operations() as operations:
            drawn(pipe, arguments)
        return operations.total

    saved = counted(None) - counted(schedule)
    assert saved == NUM_STEPS * costs.step - costs.operations(schedule) > 0


def test_a_cache_keeps_only_what_a_later_step_will_take():
    pipe = tiny.make_sd()
    apply_cache_schedule(pipe, every(pipe, 1))
    drawn(pipe, {})
    states = [hook.state for hook in pipeline_state.stateful_hooks(pipe.unet)]
    assert states and not any(state.outputs for state in states)
    pipe.unet._diffusers_hook.reset_stateful_hooks()
    assert not any(state.shapes for state in states)


def test_a_run_that_was_interrupted_leaves_nothing_to_the_next():
    pipe = tiny.make_sd()
    apply_cache_schedule(pipe, every(pipe, 8))
    expected = drawn(pipe, {}, seed=1)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(pipe, {}, seed=0, callback_on_step_end=stop)
    assert torch.equal(drawn(pipe, {}, seed=1), expected)


def test_a_schedule_in_a_block_gives_way_to_the_one_before():
    pipe = tiny.make_sd()
    outer, inner = every(pipe, 2), every(pipe, 4)
    apply_cache_schedule(pipe, outer)
    with cache_schedule(pipe, inner):
        assert applied_cache_schedule(pipe) is inner
    assert applied_cache_schedule(pipe) is outer
    with cache_schedule(pipe, None):
        assert applied_cache_schedule(pipe) is None


class TestRefused:
    def test_another_number_of_steps(self):
        pipe = tiny.make_sd()
        apply_cache_schedule(pipe, every(pipe, 2))
        with pytest.raises(ValueError, match="is for 8 steps, and the scheduler makes 4: .*num_inference_steps=8"):
            drawn(pipe, {}, num_steps=4)

    @pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler])
    def test_timesteps_that_are_visited_twice(self, kind):
        pipe = tiny.make_sd()
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        apply_cache_schedule(pipe, every(pipe, 2))
        with pytest.raises(ValueError, match="visits a timestep several times"):
            drawn(pipe, {})

    def test_a_schedule_of_another_model(self):
        with pytest.raises(ValueError, match="take a schedule for this model"):
            apply_cache_schedule(tiny.make_sd(), every(tiny.make_flux(), 2))

    def test_a_model_without_such_blocks(self):
        with pytest.raises(ValueError, match="no block of a kind"):
            cache_components(nn.Linear(1, 1))

    def test_another_cache(self):
        pipe = tiny.make_pixart()
        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=lambda: 500,
        )
        apply_pyramid_attention_broadcast(pipe.transformer, config)
        with pytest.raises(ValueError, match="has another cache"):
            apply_cache_schedule(pipe, every(pipe, 2))

    def test_compiled_blocks_before_and_after(self):
        pipe = steered(tiny.make_sd())
        apply_cache_schedule(pipe, every(pipe.pipe, 2))
        with pytest.raises(ValueError, match="remove_cache_schedule"):
            speed_up(pipe, compile=Compilation(backend="eager"))
        remove_cache_schedule(pipe)
        speed_up(pipe, compile=Compilation(backend="eager"))
        with pytest.raises(ValueError, match="is compiled"):
            apply_cache_schedule(pipe, every(pipe.pipe, 2))

    def test_feed_forward_in_chunks(self):
        pipe = tiny.make_sd()
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].set_chunk_feed_forward(1, 1)
        with pytest.raises(ValueError, match="in chunks: set_chunk_feed_forward"):
            apply_cache_schedule(pipe, every(pipe, 2))

    @pytest.mark.parametrize("options", [{"particle_batch_size": 1}, {"lookahead": 2}])
    def test_calls_that_a_cache_would_mix_up(self, options):
        pipe = steered(tiny.make_sd())
        apply_cache_schedule(pipe, every(pipe.pipe, 2))
        with pytest.raises(ValueError, match="keeps a cache"):
            pipe("a red circle", num_particles=2, num_inference_steps=NUM_STEPS, **options)

    def test_guidance_that_ends_early(self):
        pipe = tiny.make_sd()
        apply_cache_schedule(pipe, every(pipe, 4))

        def without(pipe, step, timestep, kwargs):
            if step == 1:
                pipe._guidance_scale = 1.0
                kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[1]
            return kwargs

        with pytest.raises(ValueError, match="from 2 to 1 rows"):
            drawn(
                pipe, {}, callback_on_step_end=without, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
            )
