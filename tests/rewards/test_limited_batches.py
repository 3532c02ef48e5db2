"""`Reward.limited_to`: fewer images at once inside a block, and the same scores, also where images are compared."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fk_reward.rewards import CallableReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from tests.tiny.scripted_judge import ScriptedEngine


def images(number=5):
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def listening(name="brightness", **options):
    """A reward, and the list of the numbers of images that it sees."""
    seen = []

    def brightness(pictures, prompts):
        seen.append(len(pictures))
        return pictures.mean(dim=(1, 2, 3))

    return CallableReward(brightness, name, **options), seen


@pytest.mark.parametrize(("own", "limit", "expected"), [(None, 2, [2, 2, 1]), (1, 2, [1] * 5), (8, 3, [3, 2])])
def test_the_smaller_of_limit_and_own_size_holds(own, limit, expected):
    reward, seen = listening(batch_size=own)
    scores = reward(images(), "x")
    seen.clear()
    with reward.limited_to(limit):
        torch.testing.assert_close(reward(images(), "x"), scores)
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
        reward(images(), "x")
    reward(images(), "x")
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
            reward(images(), "x")

    with ThreadPoolExecutor(2) as pool:
        for task in [pool.submit(first), pool.submit(second)]:
            task.result()
    reward(images(), "x")
    assert seen == [3, 2, 5]
    assert plain.batch_size is None


def test_a_limit_is_not_seen_by_another_thread():
    reward, seen = listening()
    with reward.limited_to(1), ThreadPoolExecutor(1) as pool:
        pool.submit(reward, images(), "x").result()
    assert seen == [5]


def test_each_part_of_a_composition_keeps_its_own_smaller_size():
    (first, seen_first), (second, seen_second) = listening("a", batch_size=1), listening("b")
    reward = first + second
    with reward.limited_to(3):
        reward(images(), "x")
    assert (seen_first, seen_second) == ([1] * 5, [3, 2])
    assert (first.batch_size, second.batch_size) == (1, None)


def test_a_judge_that_compares_still_compares_all():
    judge = PreferenceJudge(ScriptedEngine())
    expected = judge(images(), "a red circle")
    judge.engine.calls.clear()
    with judge.limited_to(2):
        assert torch.equal(judge(images(), "a red circle"), expected)
    assert max(map(len, judge.engine.calls)) == 2
    assert sum(map(len, judge.engine.calls)) == 20
    assert len(set(expected.tolist())) > 1
