"""Hooks for the time of a block: compiled modules, offloading and caches before and after, errors, others meanwhile."""

from __future__ import annotations

import inspect

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks import ModelHook as DiffusersHook
from torch import nn

from fk_reward.pipelines.hooks import WrapForward, main_denoiser, wrap_forward
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from tests import tiny
from tests.pipelines.calls import STEPS, generator, steered

INPUT = torch.ones(1, 1)


def make_flux():
    pipe = tiny.make_flux()
    pipe.scheduler = FlowMatchSDEScheduler.from_config(pipe.scheduler.config)
    return pipe


def doubled(call, *args):
    return 2 * call(*args)


@pytest.fixture
def module():
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    return module


def value(module):
    return module(INPUT).item()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_module(module, in_place):
    if in_place:
        module.compile(backend="eager")
    else:
        module = torch.compile(module, backend="eager")
    with wrap_forward(module, doubled):
        assert value(module) == 2.0
    assert value(module) == 1.0


def test_forward_hooks_of_others_run_once(module):
    seen = []
    module.register_forward_hook(lambda *call: seen.append(call))
    with wrap_forward(module, lambda call, x: call(x) + call(x)):
        assert value(module) == 2.0
    assert len(seen) == 1


class Tripling(ModelHook):
    def post_forward(self, module, output):
        return 3 * output


def test_an_offloading_hook_stays_inside(module):
    add_hook_to_module(module, Tripling())
    with wrap_forward(module, doubled):
        assert value(module) == 6.0
    assert value(module) == 3.0
    remove_hook_from_module(module)
    assert value(module) == 1.0


def test_hooks_that_are_put_on_anew_inside_the_block_stay(module):
    """What a pipeline with `enable_model_cpu_offload` does at the end of its call."""
    add_hook_to_module(module, Tripling())
    with wrap_forward(module, doubled):
        remove_hook_from_module(module)
        add_hook_to_module(module, Tripling())
    assert value(module) == 3.0
    remove_hook_from_module(module)
    assert value(module) == 1.0


def test_nested_and_undone_after_an_error(module):
    before = set(vars(module))
    with pytest.raises(ZeroDivisionError), wrap_forward(module, doubled), wrap_forward(module, doubled):
        assert value(module) == 4.0
        _ = 1 / 0
    assert value(module) == 1.0
    assert set(vars(module)) == before


def register(module, hook, name="another"):
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


class AddingOne(DiffusersHook):
    """Has a `new_forward`, as the hooks of Diffusers' feature caches."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs) + 1


class Once(DiffusersHook):
    """Removes itself after the first call, as `LazyPrefetchGroupOffloadingHook` does."""

    def post_forward(self, module, output):
        module._diffusers_hook.remove_hook("another", recurse=False)
        return 10 * output


def test_a_hook_of_diffusers_stays_inside(module):
    register(module, AddingOne())
    with wrap_forward(module, doubled):
        assert value(module) == 4.0
    assert value(module) == 2.0
    assert list(module._diffusers_hook.hooks) == ["another"]


def test_a_hook_that_removes_itself_takes_no_other_with_it(module):
    register(module, Once())
    with wrap_forward(module, doubled), wrap_forward(module, doubled):
        assert [value(module), value(module), value(module)] == [40.0, 4.0, 4.0]
    assert value(module) == 1.0


def test_a_hook_that_removes_itself_in_the_only_call(module):
    register(module, Once())
    with wrap_forward(module, doubled):
        assert value(module) == 20.0
    assert value(module) == 1.0


def test_saboteur_without_repair_the_wrapper_is_lost(module, monkeypatch):
    monkeypatch.setattr(WrapForward, "_repair", lambda self: None)
    register(module, Once())
    with wrap_forward(module, doubled):
        assert [value(module), value(module)] == [20.0, 1.0]


def test_a_hook_that_comes_inside_the_block_stays(module):
    with wrap_forward(module, doubled):
        register(module, AddingOne())
        assert value(module) == 3.0
    assert value(module) == 2.0
    module._diffusers_hook.remove_hook("another", recurse=False)
    assert value(module) == 1.0


def test_offloading_that_begins_inside_the_block_keeps_nothing_of_it(module):
    with wrap_forward(module, doubled):
        add_hook_to_module(module, Tripling())
        assert value(module) == 6.0
    assert value(module) == 3.0


def test_the_signature_stays_readable(module):
    before = inspect.signature(module.forward)
    with wrap_forward(module, doubled):
        assert inspect.signature(module.forward) == before


class Moving(ModelHook):
    """In the place of a hook that moves weights: counts the calls that it sees."""

    def __init__(self):
        self.num_calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.num_calls += 1
        return args, kwargs


def offload_anew(pipe, hook):
    """What `enable_model_cpu_offload` does, at the end of each call once more."""

    def again():
        remove_hook_from_module(pipe.transformer)
        add_hook_to_module(pipe.transformer, hook)

    again()
    pipe.maybe_free_model_hooks = again


@pytest.fixture(scope="module")
def cached_images():
    return steered_flux()[0]


def steered_flux(*, offload=None):
    """Images of a cached Flux, its trace, and the calls that an offloading hook put on before or after saw."""
    pipe, hook = make_flux(), Moving()
    if offload == "before":
        offload_anew(pipe, hook)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    if offload == "after":
        offload_anew(pipe, hook)
    out = steered(pipe)(
        "a red circle", generator=generator(), num_particles=2, num_inference_steps=STEPS, output_type="pt"
    )
    assert not any(isinstance(hook, WrapForward) for hook in pipe.transformer._diffusers_hook.hooks.values())
    return out.images, out.trace, hook.num_calls


@pytest.mark.parametrize("offload", ["before", "after"])
def test_caches_and_offloading_in_either_order_give_the_same_images(offload, cached_images):
    images, trace, num_calls = steered_flux(offload=offload)
    assert torch.equal(images, cached_images)
    assert trace.num_model_calls == num_calls == STEPS


def test_group_offload_gives_the_same_images():
    call = {"num_particles": 2, "num_inference_steps": STEPS, "output_type": "pt", "particle_batch_size": 1}
    expected = steered(make_flux())("a red circle", generator=generator(), **call)
    pipe, cpu = make_flux(), torch.device("cpu")
    apply_group_offloading(pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    hooks = list(pipe.transformer._diffusers_hook.hooks)
    out = steered(pipe)("a red circle", generator=generator(), **call)
    assert torch.equal(out.images, expected.images)
    assert out.trace.num_model_calls == STEPS
    assert list(pipe.transformer._diffusers_hook.hooks) == hooks


def test_the_denoiser_of_a_steered_pipeline_whose_hook_removes_itself():
    pipe = make_flux()
    register(pipe.transformer, Once())
    before = set(vars(pipe.transformer))
    out = steered(pipe)(
        "a red circle", generator=generator(), num_particles=2, num_inference_steps=STEPS, particle_batch_size=1
    )
    assert out.trace.num_model_calls == STEPS
    assert set(vars(main_denoiser(pipe))) == before
