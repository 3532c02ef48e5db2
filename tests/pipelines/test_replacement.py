"""A method replaced for the time of a block: hooks, compiled modules, errors, and others who replace it meanwhile."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from fk_reward.pipelines.hooks import call_name, replaced

INPUT = torch.ones(1, 1)


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
    with replaced(module, call_name(module), doubled):
        assert value(module) == 2.0
    assert value(module) == 1.0


def test_forward_hooks_of_others_run_once(module):
    seen = []
    module.register_forward_hook(lambda *call: seen.append(call))
    with replaced(module, "forward", lambda call, x: call(x) + call(x)):
        assert value(module) == 2.0
    assert len(seen) == 1


class Tripling(ModelHook):
    def post_forward(self, module, output):
        return 3 * output


def test_an_offloading_hook_stays_inside(module):
    add_hook_to_module(module, Tripling())
    with replaced(module, "forward", doubled):
        assert value(module) == 6.0
    assert value(module) == 3.0
    remove_hook_from_module(module)
    assert value(module) == 1.0


def test_hooks_that_are_put_on_anew_inside_the_block_stay(module):
    """What a pipeline with `enable_model_cpu_offload` does at the end of its call."""
    add_hook_to_module(module, Tripling())
    with replaced(module, "forward", doubled):
        remove_hook_from_module(module)
        add_hook_to_module(module, Tripling())
    assert value(module) == 3.0
    remove_hook_from_module(module)
    assert value(module) == 1.0


def test_nested_and_undone_after_an_error(module):
    before = set(vars(module))
    with pytest.raises(ZeroDivisionError), replaced(module, "forward", doubled), replaced(module, "forward", doubled):
        assert value(module) == 4.0
        _ = 1 / 0
    assert value(module) == 1.0
    assert set(vars(module)) == before
