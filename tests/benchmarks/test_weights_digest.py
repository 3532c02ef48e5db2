"""Weights are found in nested rewards, and a digest is that of the reward, whatever else shares its backbone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fk_reward.benchmarks.store import held_weights, weights_digest
from fk_reward.rewards import CallableReward, Reward, RewardCard
from tests.tiny.llava_reward import write_tiny


@dataclass(frozen=True)
class Term:
    """A part of a composition with its weight."""

    weight: float
    reward: Reward


class Composite(Reward):
    """A reward made of others, which it holds in some way."""

    card = RewardCard(name="composite", summary="several")

    def __init__(self, parts):
        self.parts = parts

    def score(self, images, prompts):
        raise NotImplementedError


def network():
    return CallableReward(nn.Bilinear(3, 3, 1), "network")  # called with two arguments, as a reward is


HOLDERS = {
    "itself": lambda reward: reward,
    "list": lambda reward: [reward],
    "tuple": lambda reward: (0.5, reward),
    "dict": lambda reward: {"a": reward},
    "dataclass": lambda reward: [Term(0.5, reward)],
    "deep": lambda reward: {"deep": [Composite([reward])]},
}


@pytest.mark.parametrize("hold", list(HOLDERS.values()), ids=HOLDERS)
def test_modules_are_found_however_they_are_held(hold):
    inner = network()
    names = [name for name, _ in held_weights(Composite(hold(inner)))]
    assert names == ["weight", "bias"]
    before = weights_digest([Composite(hold(inner))])
    with torch.no_grad():
        inner.fn.bias.add_(1e-3)
    assert weights_digest([Composite(hold(inner))]) != before


def test_names_and_numbers_hold_no_weights():
    assert list(held_weights(Composite(["name", 3, None, RewardCard(name="x", summary="y"), Term]))) == []


def test_order_and_names_count():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_digest([one, other]) != weights_digest([other, one])


@pytest.fixture
def phi(tmp_path):
    return write_tiny(tmp_path, "phi3_v")


def test_a_llava_reward_keeps_its_digest_when_others_join_its_backbone(phi):
    alignment = phi.load("alignment")
    alone, whole = weights_digest([alignment]), weights_digest([alignment.model])
    safety = phi.load("safety")
    assert safety.model is alignment.model, "the backbone is shared"
    assert weights_digest([alignment]) == alone
    assert weights_digest([alignment.model]) != whole, "which is why the whole model would not do"
    assert weights_digest([safety]) != alone
    assert weights_digest([Composite({"a": alignment, "s": safety})]) == weights_digest([[alignment, safety]])


@pytest.mark.parametrize("part", ["backbone", "lora", "head", "projector"])
def test_every_part_of_a_llava_reward_counts(phi, part):
    reward = phi.load("alignment")
    model, key = reward.model, next(iter(reward.model.configs))
    before = weights_digest([reward])
    weights = {
        "backbone": lambda: model.backbone.language_model.get_parameter("norm.weight"),
        "lora": lambda: next(iter(model.adapters.parameters_of(key).values())),
        "head": lambda: next(model.heads[key].parameters()),
        "projector": lambda: next(model.projectors[key].parameters()),
    }
    with torch.no_grad():
        weights[part]().add_(1e-2)
    assert weights_digest([reward]) != before
