"""Results on disk: resumed, shared, never mixed with those of other settings or weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fk_reward.benchmarks.store import ResultStore, held_weights, settings_changes, weights_digest
from fk_reward.rewards import CallableReward, Reward, RewardCard
from tests.tiny.llava_reward import write_tiny

SETTINGS = {"reward": "brightness", "num_particles": (2, 4), "steering": {"potential": "max"}}


def test_results_of_all_writers_come_back(tmp_path):
    first, second = (ResultStore(tmp_path, SETTINGS) for _ in range(2))
    first.append([{"prompt": 0}, {"prompt": 2}], writer="0-of-2")
    second.append([{"prompt": 1}], writer="1-of-2")
    first.append([{"prompt": 4}], writer="0-of-2")
    assert [result["prompt"] for result in ResultStore(tmp_path, SETTINGS).load()] == [0, 2, 4, 1]


def test_other_settings_are_refused_and_named(tmp_path):
    ResultStore(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="reward 'brightness' -> 'darkness'"):
        ResultStore(tmp_path, SETTINGS | {"reward": "darkness"})
    with pytest.raises(ValueError, match="extra"):
        ResultStore(tmp_path, SETTINGS | {"extra": 1})


def test_settings_can_be_read_back(tmp_path):
    ResultStore(tmp_path, SETTINGS)
    assert ResultStore(tmp_path).settings == SETTINGS | {"num_particles": [2, 4]}
    with pytest.raises(FileNotFoundError, match="no results"):
        ResultStore(tmp_path / "empty")


def test_a_line_cut_short_is_dropped(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0}])
    with (tmp_path / "results-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prom')
    assert store.load() == [{"prompt": 0}]
    store.append([{"prompt": 1}])
    assert store.load() == [{"prompt": 0}, {"prompt": 1}]


def test_a_first_line_cut_short_is_dropped(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    (tmp_path / "results-0.jsonl").write_text('{"prom', encoding="utf-8")
    assert store.load() == []
    store.append([{"prompt": 1}])
    assert store.load() == [{"prompt": 1}]


def test_a_result_that_stands_there_twice_counts_once(tmp_path, caplog):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0, "score": 1}, {"prompt": 1, "score": 2}], writer="a")
    store.append([{"prompt": 1, "score": 3}, {"prompt": 2, "score": 4}], writer="b")
    assert [result["score"] for result in store.load(["prompt"])] == [1, 2, 4]
    assert "results-b.jsonl, line 1: repeats an earlier result" in caplog.text
    assert len(store.load()) == 4


def test_a_line_without_what_says_what_it_is_of_is_named(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0}, {}])
    with pytest.raises(ValueError, match=r"results-0\.jsonl, line 2 has no prompt"):
        store.load(["prompt"])


@pytest.mark.parametrize("text", ["", "[]", '{"reward": ', "\0\0"])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    for settings in (SETTINGS, None):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            ResultStore(tmp_path, settings)


def test_results_without_settings_are_not_taken_for_those_of_any(tmp_path):
    ResultStore(tmp_path, SETTINGS).append([{"prompt": 0}])
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json is missing"):
        ResultStore(tmp_path, SETTINGS)


def test_changes_are_told_leaf_by_leaf_and_not_without_end():
    assert settings_changes({"a": {"b": [1, 2]}, "c": 0}, {"a": {"b": [1, 3]}, "c": 0}) == "a.b.1 2 -> 3"
    assert settings_changes({"a": []}, {"a": [4]}) == "a [] -> None, a.0 None -> 4"
    many = {str(i): i for i in range(50)}
    assert settings_changes(many, {}).endswith(", 38 more")


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
