"""The head: float32 whatever its parents are told, its initial weights, and training steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fk_reward.rewards.llava_reward.head import RewardHead

WIDTH = 16


def make(*, cross_attention=True, value_head_dim=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return RewardHead(
        WIDTH, value_head_dim=value_head_dim, cross_attention=cross_attention, eps=1e-6, generator=generator
    )


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden, visual = (torch.randn(shape, generator=generator).to(dtype) for shape in [(2, WIDTH), (2, 3, WIDTH)])
    return hidden, visual, torch.tensor([[True, True, True], [True, False, False]])


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


CONVERSIONS = {
    "to": lambda module: module.to(torch.bfloat16),
    "to device and dtype": lambda module: module.to("cpu", torch.float16),
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "type": lambda module: module.type(torch.float16),
    "to a tensor": lambda module: module.to(torch.zeros(1, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("conversion", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_parent_cannot_narrow_it_by_a_bit(conversion):
    parent = nn.ModuleDict({"other": nn.Linear(2, 2), "head": make()})
    before = copy.deepcopy(parent["head"])
    conversion(parent)
    assert parent["other"].weight.dtype in (torch.bfloat16, torch.float16)
    assert same_weights(parent["head"], before)


def test_an_ordinary_module_would_be_narrowed():
    plain = nn.Sequential(*make().children())
    before = copy.deepcopy(plain)
    assert not same_weights(CONVERSIONS["to"](plain).float(), before)


def test_devices_and_wider_dtypes_are_obeyed():
    head = make()
    assert head.double().value_head.weight.dtype == torch.float64
    assert head(*inputs()).dtype == torch.float64
    assert head.float().value_head.weight.dtype == torch.float32
    assert head.to("meta", torch.bfloat16).value_head.weight.dtype == torch.float32
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}


def test_it_is_float32_under_a_narrow_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        head = make()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


@pytest.mark.parametrize("cross_attention", [True, False])
def test_autocast_and_narrow_inputs_do_not_cost_precision(cross_attention):
    head, narrow = make(cross_attention=cross_attention), inputs(torch.bfloat16)
    wide = [narrow[0].float(), narrow[1].float(), narrow[2]]
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(*narrow)
        assert head.value_head(wide[0]).dtype == torch.bfloat16  # what would happen without care
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(*wide))


def test_a_training_step_in_mixed_precision():
    head = make()
    parent = nn.ModuleDict({"backbone": nn.Linear(WIDTH, WIDTH), "head": head}).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-6)
    before = copy.deepcopy(head)
    hidden, visual, mask = inputs(torch.bfloat16)
    head(parent["backbone"](hidden), visual, mask).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    optimizer.step()
    assert not same_weights(head, before)
    assert parent["backbone"].weight.grad.dtype == torch.bfloat16


def test_initial_weights():
    head = RewardHead(200, value_head_dim=2, cross_attention=True, eps=1e-6, generator=torch.Generator().manual_seed(0))
    for name in ("W_q", "W_k", "W_v"):
        weight = head.skip_ca.get_parameter(f"{name}.weight")
        assert weight.std().item() == pytest.approx(1 / 201, rel=0.02)
        assert weight.mean().abs().item() < 1e-4
    assert head.value_head.weight.std().item() == pytest.approx(1 / 201, rel=0.15)
    assert torch.equal(head.skip_ca.norm.weight, torch.ones(200))
    assert same_weights(make(seed=3), make(seed=3)) and not same_weights(make(seed=3), make(seed=4))


def test_names_and_shapes():
    assert {name: tuple(value.shape) for name, value in make(value_head_dim=4).state_dict().items()} == {
        "skip_ca.W_q.weight": (WIDTH, WIDTH),
        "skip_ca.W_k.weight": (WIDTH, WIDTH),
        "skip_ca.W_v.weight": (WIDTH, WIDTH),
        "skip_ca.norm.weight": (WIDTH,),
        "value_head.weight": (4, WIDTH),
    }
    assert list(make(cross_attention=False).state_dict()) == ["value_head.weight"]


def test_without_skip_ca_it_is_a_linear_map():
    head, (hidden, visual, mask) = make(cross_attention=False), inputs()
    expected = hidden @ head.value_head.weight.T
    torch.testing.assert_close(head(hidden), expected)
    assert torch.equal(head(hidden), head(hidden, visual, mask))


def test_skip_ca_needs_its_inputs():
    with pytest.raises(ValueError, match="visual tokens and their mask"):
        make()(inputs()[0])
