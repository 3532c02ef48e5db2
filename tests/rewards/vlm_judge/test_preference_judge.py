"""The judge that compares: pairs, both orders, win rates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge import JudgeAnswerError, PreferenceJudge, VLMJudge
from fk_reward.rewards.vlm_judge.preference_judge import ring_pairs, win_rates
from tests.tiny.scripted_judge import ScriptedEngine


def greys(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


class Brighter(ScriptedEngine):
    def answer(self, pictures, text):
        first, second = (picture.getpixel((0, 0))[0] for picture in pictures)
        return f"<think>brighter</think><answer>{1 if first > second else 2}</answer>"


class AlwaysFirst(ScriptedEngine):
    def answer(self, pictures, text):
        return "<answer>1</answer>"


class Darker(Brighter):
    """A saboteur: what a judge does whose two pictures were swapped."""

    def generate(self, images, messages, *, sampling):
        return super().generate([pair[::-1] for pair in images], messages, sampling=sampling)


def check_brighter_wins(engine):
    scores = PreferenceJudge(engine)(greys(0.2, 0.8, 0.4, 0.6), "grey")
    assert_close(scores, torch.tensor([0.0, 1.0, 1 / 3, 2 / 3]))


def test_brighter_wins():
    check_brighter_wins(Brighter())


def test_swapped_pictures_are_noticed():
    with pytest.raises(AssertionError, match="not close"):
        check_brighter_wins(Darker())


def test_only_images_of_one_prompt_are_compared():
    engine = Brighter()
    scores = PreferenceJudge(engine, batch_size=None)(greys(0.2, 0.8, 0.9, 0.1, 0.5), ["a", "b", "b", "a", "c"])
    assert_close(scores, torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5]))
    assert len(engine.calls[0]) == 4  # two pairs in both orders


def test_a_judge_with_a_favourite_place_prefers_nobody():
    assert_close(PreferenceJudge(AlwaysFirst())(greys(0.1, 0.2, 0.3), "x"), torch.full((3,), 0.5))


def test_in_one_order_a_favourite_place_shows_only_where_it_cannot_be_balanced():
    odd = PreferenceJudge(AlwaysFirst(), both_orders=False)(greys(0.1, 0.2, 0.3, 0.4, 0.5), "x")
    assert_close(odd, torch.full((5,), 0.5))
    even = PreferenceJudge(AlwaysFirst(), both_orders=False)(greys(0.1, 0.2, 0.3, 0.4), "x")
    assert_close(even, torch.tensor([2 / 3, 2 / 3, 1 / 3, 1 / 3]))


@pytest.mark.parametrize(
    ("options", "num_questions"),
    [({}, 56), ({"both_orders": False}, 28), ({"num_rounds": 2}, 32), ({"num_rounds": 1, "both_orders": False}, 8)],
)
def test_what_eight_particles_cost(options, num_questions):
    engine = Brighter()
    judge = load_reward("vlm-judge-preference", engine=engine, batch_size=10, **options)
    scores = judge(greys(*(i / 10 for i in range(8))), "x")
    sizes = [len(call) for call in engine.calls]
    assert sum(sizes) == num_questions
    assert max(sizes) <= 10
    assert scores.mean().item() == pytest.approx(0.5)
    assert scores.argmax() == 7


def test_sizes_may_differ():
    pictures = [torch.full((3, 4, 4), 0.2), torch.full((3, 6, 2), 0.9), torch.full((3, 4, 4), 0.5)]
    assert_close(PreferenceJudge(Brighter())(pictures, "x"), torch.tensor([0.0, 1.0, 0.5]))


def test_an_unreadable_answer_names_both_images():
    class Shy(Brighter):
        def answer(self, pictures, text):
            answer = super().answer(pictures, text)
            return "Both are nice." if pictures[0].getpixel((0, 0))[0] == 204 else answer

    with pytest.raises(JudgeAnswerError, match=r"images 2 and 0, prompt 'a'.*'Both are nice\.'") as caught:
        PreferenceJudge(Shy())(greys(0.1, 0.3, 0.8), ["a", "b", "a"])
    assert caught.value.indices == (2, 0)


def test_preference_of_pairs():
    judge = PreferenceJudge(Brighter())
    a, b = greys(0.9, 0.1, 0.5), greys(0.2, 0.3, 0.5)
    assert judge.preference(a, b, "x").tolist() == [1.0, 0.0, 0.5]
    assert judge.preference(b, a, "x").tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="as many images b"):
        judge.preference(a, b[:2], "x")


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="for a VLMJudge"):
        PreferenceJudge(Brighter(), "rubric")
    with pytest.raises(ValueError, match="num_rounds"):
        PreferenceJudge(Brighter(), num_rounds=0)
    with pytest.raises(TypeError, match="both_order"):
        PreferenceJudge(Brighter(), both_order=False)
    with pytest.raises(TypeError, match="no verdict"):
        PreferenceJudge(Brighter()).verdicts(greys(0.1), "x")
    assert isinstance(load_reward("vlm-judge", engine=Brighter(), template="preference"), PreferenceJudge)
    assert not isinstance(load_reward("vlm-judge", engine=Brighter()), PreferenceJudge)
    assert issubclass(PreferenceJudge, VLMJudge)


@pytest.mark.parametrize("num_members", range(1, 10))
def test_all_pairs_once_and_places_balanced(num_members):
    pairs = ring_pairs(num_members)
    assert sorted(map(tuple, map(sorted, pairs))) == list(itertools.combinations(range(num_members), 2))
    for member in range(num_members):
        first = sum(pair[0] == member for pair in pairs)
        second = sum(pair[1] == member for pair in pairs)
        assert abs(first - second) <= 1


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_rounds_give_everyone_equally_many(num_rounds):
    pairs = ring_pairs(9, num_rounds)
    assert len(pairs) == 9 * num_rounds
    assert {sum(member in pair for pair in pairs) for member in range(9)} == {2 * num_rounds}


def test_win_rates_want_an_outcome_for_each_pair():
    with pytest.raises(ValueError, match="zip"):
        win_rates([(0, 1)], [], num_members=2)


class Listener:
    """Gives the first answer a probability that follows from the chain of thought."""

    name = "listener"

    def __init__(self):
        self.heard = []

    def weigh(self, images, messages, *, openings, candidates, ending):
        assert candidates == ["1", "2"]
        assert ending == "</answer>"
        self.heard += openings
        return [[0.0, 0.0] if "perhaps" in opening else [math.log(0.9), math.log(0.1)] for opening in openings]


class Reasoner:
    name = "reasoner"

    def __init__(self, *answers):
        self.answers = answers

    def generate(self, images, messages, *, sampling):
        return list(self.answers[: len(images)])


@pytest.mark.parametrize(
    ("answer", "expected", "contradicted"),
    [
        ("<think>sure</think><answer>1</answer>", 0.95, 0),
        ("<think>sure</think><answer>2</answer>", 0.45, 1),
        ("<think>perhaps</think><answer>2</answer>", 0.25, 0),
    ],
)
def test_a_listener_weighs_the_answer(answer, expected, contradicted):
    listener = Listener()
    judge = PreferenceJudge(Reasoner(answer), listener=listener, both_orders=False)
    outcome = judge.preference(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), "a cat")
    assert outcome.item() == pytest.approx(expected)
    assert (judge.num_heard, judge.num_contradicted) == (1, contradicted)
    assert listener.heard == [answer[: answer.index("<answer>") + len("<answer>")]]


def test_both_orders_are_heard():
    answers = ["<answer>1</answer>", "<answer>1</answer>"]
    judge = PreferenceJudge(Reasoner(*answers), listener=Listener())
    assert judge.preference(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), "a cat").item() == 0.5
    assert judge.num_heard == 2


def test_a_listener_must_weigh():
    with pytest.raises(TypeError, match="weigh"):
        PreferenceJudge(Reasoner(""), listener=Reasoner(""))
