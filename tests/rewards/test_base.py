"""Validation of cards."""

from __future__ import annotations

import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.rewards import CallableReward, Reward, RewardCard, maximum
from fk_reward.rewards.vlm_judge import PreferenceJudge
from tests.tiny.registered_rewards import build
from tests.tiny.scripted_judge import ScriptedEngine

CARD = RewardCard(name="a", summary="b", typical_range=(0, 1), spread=0.1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": 3}, TypeError),
        ({"summary": "two\nlines"}, ValueError),
        ({"licence": " "}, ValueError),
        ({"differentiable": "yes"}, TypeError),
        ({"higher_is_better": 1}, TypeError),
        ({"typical_range": (1, 0)}, ValueError),
        ({"typical_range": (0, math.nan)}, ValueError),
        ({"spread": 0.0}, ValueError),
        ({"spread": math.nan}, ValueError),
        ({"spread": math.inf}, ValueError),
        ({"max_prompt_tokens": 0}, ValueError),
    ],
)
def test_wrong_fields_raise(change, error):
    with pytest.raises(error, match=next(iter(change))):
        dataclasses.replace(CARD, **change)


def test_cards_are_frozen_and_take_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.name = "b"
    with pytest.raises(TypeError):
        RewardCard("a", "b")


PROMPTS = ["a red circle", "a blue square", "a star"]


def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def red(pictures, prompts):
    return pictures[:, 0].mean(dim=(1, 2))


def normalising(pictures, prompts):
    """As torchvision's `normalize(inplace=True)` does; and a prompt template, written into the list."""
    prompts[0] = "a photo"
    pictures.sub_(0.5).div_(0.1)
    return pictures[:, 0].mean(dim=(1, 2)) * 0.1 + 0.5


class Comparing(Reward):
    """Takes all images of a call, without the base class between."""

    card = RewardCard(name="comparing", summary="compares")

    def score(self, images, prompts):
        raise NotImplementedError

    def __call__(self, images, prompts):
        images.mul_(0)
        return torch.zeros(len(images))


def as_pil(pictures):
    return [Image.fromarray((255 * p).byte().permute(1, 2, 0).numpy()) for p in pictures]


FORMS = {
    "batch": lambda x: x,
    "one of the batch": lambda x: x[1:2],
    "expanded": lambda x: x[:1].expand(3, 3, 8, 8),
    "list": list,
    "float64": lambda x: x.double(),
    "array": lambda x: x.permute(0, 2, 3, 1).numpy(),
    "PIL": as_pil,
}


def numbers(form):
    return np.stack([np.asarray(image) for image in form])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_images_and_prompts_of_the_caller_stay(form, batch_size):
    given, prompts = form(images()), PROMPTS[: len(form(images()))]
    before, named = numbers(form(images())), list(prompts)
    scores = CallableReward(normalising, "n", batch_size=batch_size)(given, prompts)
    assert np.array_equal(numbers(given), before)
    assert prompts == named
    torch.testing.assert_close(scores, CallableReward(red)(form(images()), prompts))


COMPOSED = {
    "sum": lambda a, b: a + b,
    "three": lambda a, b: a + 0.5 * b + CallableReward(red, "third"),
    "maximum": maximum,
}


@pytest.mark.parametrize("compose", COMPOSED.values(), ids=COMPOSED)
@pytest.mark.parametrize("mixed_sizes", [False, True])
def test_the_neighbours_in_a_composition_read_the_images_that_were_given(compose, mixed_sizes):
    given = list(images()) + ([torch.rand(3, 4, 4)] if mixed_sizes else [])
    spoiling, plain = CallableReward(normalising, "n"), CallableReward(red, "r")
    _, parts = compose(spoiling, plain).score_with_parts(given, "x")
    torch.testing.assert_close(parts["r"], plain(given, "x"))
    torch.testing.assert_close(parts["n"], plain(given, "x"))


def test_a_part_with_a_call_of_its_own_cannot_spoil_them_either():
    given = images()
    _, parts = (Comparing() + CallableReward(red, "r")).score_with_parts(given, "x")
    assert torch.equal(given, images())
    torch.testing.assert_close(parts["r"], CallableReward(red)(images(), "x"))


@pytest.mark.parametrize("name", ["llava-reward-overall", "vlm-judge-preference", "imagereward", "hpsv2.1"])
def test_rewards_of_the_package_leave_what_they_are_given(name, tiny_files):
    """Those that take all images of a call past the base class as well."""
    given = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before = given.clone()
    reward = build(name, tiny_files)
    reward(given, "a star")
    (reward + CallableReward(red, "r"))(given, "a star")
    assert torch.equal(given, before)


def test_the_gradient_goes_through_the_copy():
    given = images().requires_grad_()
    CallableReward(normalising, "n")(given, "x").sum().backward()
    expected = images().requires_grad_()
    red(expected, []).sum().backward()
    torch.testing.assert_close(given.grad, expected.grad)


def test_a_buffer_that_the_reward_fills_again_does_not_change_earlier_scores():
    buffer = torch.zeros(3)
    reward = CallableReward(lambda pictures, prompts: buffer.copy_(red(pictures, prompts)), "b")
    first = reward(images(), "x")
    kept = first.clone()
    reward(1 - images(), "x")
    assert torch.equal(first, kept)


def numbered_images(number=5):
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def listening(name="brightness", **options):
    """A reward, and the list of the numbers of the images that it sees."""
    seen = []

    def brightness(pictures, prompts):
        seen.append(len(pictures))
        return pictures.mean(dim=(1, 2, 3))

    return CallableReward(brightness, name, **options), seen


@pytest.mark.parametrize(("own", "limit", "expected"), [(None, 2, [2, 2, 1]), (1, 2, [1] * 5), (8, 3, [3, 2])])
def test_the_smaller_of_limit_and_own_size_holds(own, limit, expected):
    reward, seen = listening(batch_size=own)
    scores = reward(numbered_images(), "x")
    seen.clear()
    with reward.limited_to(limit):
        torch.testing.assert_close(reward(numbered_images(), "x"), scores)
    assert seen == expected
    assert reward.batch_size == own


def test_it_ends_with_an_error():
    reward, _ = listening()
    with pytest.raises(ZeroDivisionError), reward.limited_to(2):
        _ = 1 / 0
    assert reward.batch_size is None


def test_a_wrong_own_size_is_still_told():
    reward, _ = listening(batch_size=0)
    with pytest.raises(ValueError, match="batch_size"), reward.limited_to(2):
        pass


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_a_wrong_limit_is_told(wrong):
    reward, _ = listening()
    with pytest.raises(ValueError, match="batch_size"), reward.limited_to(wrong):
        pass


def test_the_smallest_of_several_limits_holds_until_its_block_ends():
    reward, seen = listening()
    with reward.limited_to(2), reward.limited_to(4):
        reward(numbered_images(), "x")
    reward(numbered_images(), "x")
    assert seen == [2, 2, 1, 5]


@pytest.mark.parametrize("compose", [lambda reward: reward, lambda reward: 2 * reward], ids=["plain", "composed"])
def test_threads_with_one_reward_do_not_limit_each_other(compose):
    """Written into `batch_size`, the limit of the thread that ends last would stay for ever."""
    plain, seen = listening()
    reward, both_inside, first_left = compose(plain), threading.Barrier(2, timeout=30), threading.Event()

    def first():
        with reward.limited_to(1):
            both_inside.wait()
        first_left.set()

    def second():
        both_inside.wait()
        with reward.limited_to(3):
            first_left.wait(30)
            reward(numbered_images(), "x")

    with ThreadPoolExecutor(2) as pool:
        for task in [pool.submit(first), pool.submit(second)]:
            task.result()
    reward(numbered_images(), "x")
    assert seen == [3, 2, 5]
    assert plain.batch_size is None


def test_a_limit_is_not_seen_by_another_thread():
    reward, seen = listening()
    with reward.limited_to(1), ThreadPoolExecutor(1) as pool:
        pool.submit(reward, numbered_images(), "x").result()
    assert seen == [5]


def test_each_part_of_a_composition_keeps_its_own_smaller_size():
    (first, seen_first), (second, seen_second) = listening("a", batch_size=1), listening("b")
    reward = first + second
    with reward.limited_to(3):
        reward(numbered_images(), "x")
    assert (seen_first, seen_second) == ([1] * 5, [3, 2])
    assert (first.batch_size, second.batch_size) == (1, None)


def test_a_judge_that_compares_still_compares_all():
    judge = PreferenceJudge(ScriptedEngine())
    expected = judge(numbered_images(), "a red circle")
    judge.engine.calls.clear()
    with judge.limited_to(2):
        assert torch.equal(judge(numbered_images(), "a red circle"), expected)
    assert max(map(len, judge.engine.calls)) == 2
    assert sum(map(len, judge.engine.calls)) == 20
    assert len(set(expected.tolist())) > 1
