"""SkipCA against the official formula; the head: float32 whatever its parents are told, and its initial weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fk_reward.rewards.llava_reward.head import RewardHead, SkipCA

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


SKIP_CA_WIDTH, EPS = 12, 1e-5


def make_skip_ca(seed=0, *, module=SkipCA, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    skip_ca = module(SKIP_CA_WIDTH, eps=EPS).to(dtype)
    with torch.no_grad():
        for parameter in skip_ca.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5)
    return skip_ca


def skip_ca_inputs(counts=(5, 2), *, sequence=7, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(counts), sequence, SKIP_CA_WIDTH, generator=generator, dtype=dtype)
    visual = torch.randn(len(counts), max(counts), SKIP_CA_WIDTH, generator=generator, dtype=dtype)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return states, visual, mask


def dense(skip_ca, states, visual, mask):
    """All tokens of the sequence ask, as in the paper; attention and norm are libraries' own."""
    norm = LlamaRMSNorm(SKIP_CA_WIDTH, eps=EPS)
    norm.weight = skip_ca.norm.weight
    attention = functional.scaled_dot_product_attention(
        skip_ca.W_q(states), skip_ca.W_k(visual), skip_ca.W_v(visual), attn_mask=mask[:, None, :]
    )
    return norm(states + attention)


def assert_is_the_dense_one(skip_ca):
    states, visual, mask = skip_ca_inputs()
    expected = dense(skip_ca, states, visual, mask)[:, -1]
    torch.testing.assert_close(skip_ca(states[:, -1], visual, mask), expected, rtol=1e-6, atol=1e-6)


def test_last_token_of_the_dense_computation():
    assert_is_the_dense_one(make_skip_ca())


class Unscaled(SkipCA):
    """Forgets 1 / sqrt(D)."""

    def forward(self, hidden, visual, mask):
        scores = torch.einsum("bd,bnd->bn", self.W_q(hidden), self.W_k(visual)).masked_fill(~mask, -torch.inf)
        return self.norm(hidden + torch.einsum("bn,bnd->bd", scores.softmax(-1), self.W_v(visual)))


class SeesPadding(SkipCA):
    """Attends to padding as well."""

    def forward(self, hidden, visual, mask):
        return super().forward(hidden, visual, torch.ones_like(mask))


class Untransposed(SkipCA):
    """Mistakes W_k for its transpose."""

    def forward(self, hidden, visual, mask):
        self.W_k.weight.data = self.W_k.weight.data.T
        result = super().forward(hidden, visual, mask)
        self.W_k.weight.data = self.W_k.weight.data.T
        return result


@pytest.mark.parametrize("module", [Unscaled, SeesPadding, Untransposed])
def test_wrong_attention_is_noticed(module):
    with pytest.raises(AssertionError):
        assert_is_the_dense_one(make_skip_ca(module=module))


def test_padding_has_no_effect_at_all():
    skip_ca = make_skip_ca()
    states, visual, mask = skip_ca_inputs(counts=(4, 2))
    garbage = visual.masked_fill(~mask[..., None], 1e6)
    assert torch.equal(skip_ca(states[:, -1], visual, mask), skip_ca(states[:, -1], garbage, mask))
    alone = skip_ca(states[1:, -1], visual[1:, :2], mask[1:, :2])
    torch.testing.assert_close(skip_ca(states[:, -1], visual, mask)[1:], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_visual", [0, 3])
def test_without_visual_tokens_it_is_exactly_the_norm(num_visual):
    skip_ca = make_skip_ca(dtype=torch.float32)
    states, visual, mask = skip_ca_inputs(counts=(3, 3), dtype=torch.float32)
    hidden, visual = states[:, -1], visual[:, :num_visual]
    result = skip_ca(hidden, visual, torch.zeros_like(mask[:, :num_visual]))
    assert torch.equal(result, skip_ca.norm(hidden))
    assert not torch.equal(skip_ca(hidden, skip_ca_inputs(dtype=torch.float32)[1][:, :3], mask), skip_ca.norm(hidden))


def test_huge_scores_stay_finite():
    skip_ca = make_skip_ca(dtype=torch.float32)
    states, visual, mask = skip_ca_inputs(dtype=torch.float32)
    assert skip_ca(1e4 * states[:, -1], 1e4 * visual, mask).isfinite().all()


def test_gradients_by_finite_differences():
    skip_ca = make_skip_ca()
    states, visual, mask = skip_ca_inputs(counts=(3, 0))
    hidden = states[:, -1].clone().requires_grad_(True)
    visual.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda h, v: skip_ca(h, v, mask), (hidden, visual))


@pytest.mark.parametrize(
    ("visual", "mask", "message"),
    [
        (torch.zeros(2, SKIP_CA_WIDTH), torch.ones(2, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(2, 3, SKIP_CA_WIDTH + 1), torch.ones(2, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(1, 3, SKIP_CA_WIDTH), torch.ones(1, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(2, 3, SKIP_CA_WIDTH), torch.ones(2, 4, dtype=torch.bool), "mask must be boolean of shape"),
        (torch.zeros(2, 3, SKIP_CA_WIDTH), torch.ones(2, 3), "mask must be boolean of shape"),
    ],
)
def test_shapes_that_do_not_fit(visual, mask, message):
    with pytest.raises(ValueError, match=message):
        make_skip_ca(dtype=torch.float32)(torch.zeros(2, SKIP_CA_WIDTH), visual, mask)
