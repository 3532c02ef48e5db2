"""The reward of completions by a listener: its parts, what it does not ask, and what TRL passes."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from fk_reward.rewards.vlm_judge import ListenerReward

FIRST, SECOND, NOTHING = "<think>sure</think><answer>1</answer>", "<answer>2</answer>", "I like both."


class Listener:
    """Prefers the first image by 4 to 1 where the reasons are sure, else the second by 3 to 1."""

    name = "listener"

    def __init__(self):
        self.calls = []

    def weigh(self, images, messages, *, openings, candidates, ending):
        self.calls.append(list(openings))
        assert all(len(pair) == 2 for pair in images) and len(images) == len(messages) == len(openings)
        chances = [0.8 if "sure" in opening else 0.25 for opening in openings]
        return [[math.log(chance) - 1, math.log(1 - chance) - 1] for chance in chances]  # of two among many


def columns(*preferred):
    pair = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]
    return {
        "images": [pair] * len(preferred),
        "caption": ["a cat"] * len(preferred),
        "preferred": list(preferred),
        "completion_ids": [[1]] * len(preferred),
        "trainer_state": None,
    }


def test_the_parts_of_the_reward():
    reward = ListenerReward(Listener(), format_weight=0.1, accuracy_weight=1.0, listener_weight=2.0)
    found = reward([FIRST, FIRST, SECOND, SECOND, NOTHING], **columns(1, 2, 1, 2, 1))
    assert found == pytest.approx([0.1 + 1 + 1.6, 0.1 + 0.4, 0.1 + 0.5, 0.1 + 1 + 1.5, 0.0])
    assert (reward.num_heard, reward.num_contradicted) == (4, 0)


def test_a_contradiction_is_counted_and_logged():
    logged = {}
    reward = ListenerReward(Listener())
    answers = ["<think>sure</think><answer>2</answer>", FIRST, "<answer>1</answer>", NOTHING]
    reward(answers, log_metric=logged.__setitem__, **columns(1, 1, 1, 1))
    assert (reward.num_heard, reward.num_contradicted) == (3, 2)
    assert logged == {"listener_contradicted": pytest.approx(2 / 3)}


def test_conversations_and_batches():
    listener = Listener()
    reward = ListenerReward(listener, batch_size=2)
    texts = [FIRST, SECOND, FIRST]
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    expected = reward(texts, **columns(1, 1, 1))
    assert reward(turns, **columns(1, 1, 1)) == reward(parts, **columns(1, 1, 1)) == expected
    assert [len(call) for call in listener.calls] == [2, 1] * 3


def test_other_names_of_columns():
    reward = ListenerReward(Listener(), images="pair", prompt="text", preferred="winner")
    named = {"pair": columns(1)["images"], "text": ["a cat"], "winner": [1]}
    assert reward([FIRST], **named) == ListenerReward(Listener())([FIRST], **columns(1))
    with pytest.raises(KeyError, match="no column 'pair'"):
        reward([FIRST], **columns(1))


def test_nobody_is_asked_about_nothing():
    listener = Listener()
    assert ListenerReward(listener)([NOTHING], **columns(1)) == [0.0]
    assert listener.calls == []


def test_refusals():
    with pytest.raises(TypeError, match="needs a method `weigh`"):
        ListenerReward(object())
    with pytest.raises(ValueError, match="does not compare two images"):
        ListenerReward(Listener(), "rubric")
    with pytest.raises(ValueError, match="must be 1 or 2"):
        ListenerReward(Listener())([FIRST], **columns(0))
    with pytest.raises(TypeError, match="listener_weight"):
        ListenerReward(Listener(), listener_weight="much")
