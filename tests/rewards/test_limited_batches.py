"""`Reward.limited_to`: fewer images at once inside a block, and the same scores, also where images are compared."""

from __future__ import annotations

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
