"""Half precision on a GPU by default, heads in float32, TF32 only where it was asked for."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fk_reward.rewards import CallableReward, Reward, RewardCard
from fk_reward.rewards import base as module
from fk_reward.rewards.float32_layers import Float32Sequential, float32_linear
from fk_reward.rewards.precision import no_silent_tf32
from tests.tiny.registered_rewards import build

TOWERS = ("aesthetic", "blip-itm", "clipscore", "hpsv2", "hpsv2.1", "imagereward", "pickscore")


@pytest.fixture
def gpu(monkeypatch):
    """Moving to "cuda" leaves weights where they are, so that the choice of dtype can be seen without a GPU."""
    own = nn.Module.to

    def to(self, device=None, dtype=None):
        return self if dtype is None else own(self, dtype=dtype)

    monkeypatch.setattr(nn.Module, "to", to)


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_halved_on_a_gpu_and_scores_stay(name, tiny_files, gpu):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reward = build(name, tiny_files)
    expected = reward(images, "a red circle")
    weights = [weight.dtype for weight in reward.to("cuda").model.parameters()]
    assert weights.count(torch.float16) > 0.8 * len(weights)
    scores = reward(images, "a red circle")
    assert scores.dtype == torch.float32
    assert_close(scores, expected, rtol=2e-2, atol=5e-2 * max(1.0, expected.abs().max().item()))
    assert not torch.equal(scores, scores.half().float()), "the head has more digits than half precision"


@pytest.mark.parametrize("name", TOWERS)
def test_a_named_dtype_is_kept(name, tiny_files, gpu):
    kept = build(name, tiny_files, torch_dtype=torch.float32).to("cuda")
    named = build(name, tiny_files).to("cuda", torch.float32)
    for reward in (kept, named):
        assert {weight.dtype for weight in reward.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", TOWERS)
def test_on_the_cpu_nothing_changes(name, tiny_files):
    assert {weight.dtype for weight in build(name, tiny_files).to("cpu").model.parameters()} == {torch.float32}


def test_rewards_of_ones_own_keep_their_dtype(gpu):
    class Own(Reward):
        card = RewardCard(name="own", summary="own")

        def __init__(self):
            self.layer = nn.Linear(2, 2)

        def score(self, images, prompts):
            return images.mean(dim=(1, 2, 3))

    assert Own().to("cuda").layer.weight.dtype == torch.float32


def test_heads_in_float32_tell_apart_what_half_precision_makes_equal():
    torch.manual_seed(0)
    head = Float32Sequential(nn.Linear(256, 1))
    states = torch.randn(64, 256).half()
    exact = head(states).squeeze(1)
    assert len(exact.unique()) == 64
    assert len((100 + exact).half().unique()) < 32, "as a head in half precision would"
    linear = nn.Linear(256, 2).half()
    assert float32_linear(linear, states).dtype == torch.float32


@pytest.fixture
def matmul():
    """PyTorch's settings of matrix products, put back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_tf32 = before


def seen_by_score():
    """Whether convolutions may use TF32 inside `score`."""
    seen = []

    def score(images, prompts):
        seen.append(torch.backends.cudnn.allow_tf32)
        return images.mean(dim=(1, 2, 3))

    CallableReward(score)(torch.zeros(1, 3, 4, 4), "a")
    return seen[0]


def test_tf32_is_never_silent(monkeypatch, matmul):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    matmul.allow_tf32 = False
    assert not seen_by_score(), "convolutions use it by default"
    assert torch.backends.cudnn.allow_tf32, "as before outside"
    matmul.allow_tf32 = True
    assert seen_by_score(), "asked for"


def test_without_the_guard_it_would_be_silent(monkeypatch, matmul):
    monkeypatch.setattr(module, "no_silent_tf32", nullcontext)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert seen_by_score()


def test_the_guard_puts_the_setting_back_after_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(KeyError), no_silent_tf32():
        raise KeyError
    assert torch.backends.cudnn.allow_tf32
