"""SkipCA against a dense computation over all tokens with torch's attention and transformers' RMSNorm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fk_reward.rewards.llava_reward.head import SkipCA

WIDTH, EPS = 12, 1e-5


def make(seed=0, *, module=SkipCA, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    skip_ca = module(WIDTH, eps=EPS).to(dtype)
    with torch.no_grad():
        for parameter in skip_ca.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5)
    return skip_ca


def inputs(counts=(5, 2), *, sequence=7, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(counts), sequence, WIDTH, generator=generator, dtype=dtype)
    visual = torch.randn(len(counts), max(counts), WIDTH, generator=generator, dtype=dtype)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return states, visual, mask


def dense(skip_ca, states, visual, mask):
    """All tokens of the sequence ask, as in the paper; attention and norm are libraries' own."""
    norm = LlamaRMSNorm(WIDTH, eps=EPS)
    norm.weight = skip_ca.norm.weight
    attention = functional.scaled_dot_product_attention(
        skip_ca.W_q(states), skip_ca.W_k(visual), skip_ca.W_v(visual), attn_mask=mask[:, None, :]
    )
    return norm(states + attention)


def assert_is_the_dense_one(skip_ca):
    states, visual, mask = inputs()
    expected = dense(skip_ca, states, visual, mask)[:, -1]
    torch.testing.assert_close(skip_ca(states[:, -1], visual, mask), expected, rtol=1e-6, atol=1e-6)


def test_last_token_of_the_dense_computation():
    assert_is_the_dense_one(make())


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
        assert_is_the_dense_one(make(module=module))


def test_padding_has_no_effect_at_all():
    skip_ca = make()
    states, visual, mask = inputs(counts=(4, 2))
    garbage = visual.masked_fill(~mask[..., None], 1e6)
    assert torch.equal(skip_ca(states[:, -1], visual, mask), skip_ca(states[:, -1], garbage, mask))
    alone = skip_ca(states[1:, -1], visual[1:, :2], mask[1:, :2])
    torch.testing.assert_close(skip_ca(states[:, -1], visual, mask)[1:], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_visual", [0, 3])
def test_without_visual_tokens_it_is_exactly_the_norm(num_visual):
    skip_ca = make(dtype=torch.float32)
    states, visual, mask = inputs(counts=(3, 3), dtype=torch.float32)
    hidden, visual = states[:, -1], visual[:, :num_visual]
    result = skip_ca(hidden, visual, torch.zeros_like(mask[:, :num_visual]))
    assert torch.equal(result, skip_ca.norm(hidden))
    assert not torch.equal(skip_ca(hidden, inputs(dtype=torch.float32)[1][:, :3], mask), skip_ca.norm(hidden))


def test_huge_scores_stay_finite():
    skip_ca = make(dtype=torch.float32)
    states, visual, mask = inputs(dtype=torch.float32)
    assert skip_ca(1e4 * states[:, -1], 1e4 * visual, mask).isfinite().all()


def test_gradients_by_finite_differences():
    skip_ca = make()
    states, visual, mask = inputs(counts=(3, 0))
    hidden = states[:, -1].clone().requires_grad_(True)
    visual.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda h, v: skip_ca(h, v, mask), (hidden, visual))


@pytest.mark.parametrize(
    ("visual", "mask", "message"),
    [
        (torch.zeros(2, WIDTH), torch.ones(2, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(2, 3, WIDTH + 1), torch.ones(2, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(1, 3, WIDTH), torch.ones(1, 3, dtype=torch.bool), "visual must have shape"),
        (torch.zeros(2, 3, WIDTH), torch.ones(2, 4, dtype=torch.bool), "mask must be boolean of shape"),
        (torch.zeros(2, 3, WIDTH), torch.ones(2, 3), "mask must be boolean of shape"),
    ],
)
def test_shapes_that_do_not_fit(visual, mask, message):
    with pytest.raises(ValueError, match=message):
        make(dtype=torch.float32)(torch.zeros(2, WIDTH), visual, mask)
