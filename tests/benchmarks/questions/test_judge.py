"""The rules by hand and against the public formulas, and the judge with a scripted answerer."""

from __future__ import annotations

import itertools
import math

import pytest
from PIL import Image
from scipy.stats import gmean

from fk_reward.benchmarks.questions.answerers import Answered
from fk_reward.benchmarks.questions.atoms import Atom, question_record
from fk_reward.benchmarks.questions.judge import (
    RULES,
    QuestionJudge,
    Style,
    dpg,
    drawn_verdicts,
    product,
    share,
    soft_tifa,
    vqascore,
)
from fk_reward.benchmarks.task import SelfTestError


def answers(*values):
    return [(Atom(f"{i}?", number=i), Answered(value, value > 0.5, "x")) for i, value in enumerate(values, start=1)]


@pytest.mark.parametrize("values", [(0.2, 0.9, 0.5), (1.0,), (1e-200, 1e-200, 1e-200), (0.0, 0.7)])
def test_soft_tifa_is_both_means(values):
    found = soft_tifa(answers(*values))
    assert found["Soft-TIFA AM"] == pytest.approx(sum(values) / len(values))
    assert found["Soft-TIFA GM"] == pytest.approx(gmean(values) if min(values) > 0 else 0.0)


def test_other_rules_by_hand():
    some = answers(0.25, 0.8)
    assert product(some) == {"product": pytest.approx(0.2)}
    assert share(some) == {"test points": 0.5}
    assert vqascore(answers(0.7)) == {"VQAScore": 0.7}


PARENTS = {1: (0,), 2: (1,), 3: (2,), 4: (1, 3)}


def public_dpg(said):
    """The score of one image as in DPG-Bench's `compute_dpg_bench.py`, in our words."""
    scores = {number: float(value) for number, value in said.items()}
    for number, parents in PARENTS.items():
        if any(parent != 0 and scores[parent] == 0 for parent in parents):
            scores[number] = 0.0
    return sum(scores.values()) / len(scores)


def test_dpg_for_every_combination_of_answers():
    differ = 0
    for values in itertools.product((False, True), repeat=4):
        said = dict(enumerate(values, start=1))
        given = [(Atom("?", number=n, parents=PARENTS[n]), Answered(0.5, said[n], "")) for n in said]
        assert dpg(given)["DPG"] == public_dpg(said)
        differ += dpg(given)["DPG"] != share(given)["test points"]
    assert differ == 11  # all but those that answer with yes up to some question, and with no from there


def test_a_question_that_comes_before_its_parent_is_judged_as_it_stands():
    """The public code goes through the file once, so that only what comes later hears of a no that it made."""
    early = Atom("?", number=2, parents=(3,))
    later = Atom("?", number=3, parents=(1,))
    root = Atom("?", number=1)
    given = [(root, Answered(0, False, "")), (early, Answered(1, True, "")), (later, Answered(1, True, ""))]
    assert dpg(given) == {"DPG": pytest.approx(1 / 3)}


class Scripted:
    """Answers by the question's first word."""

    identity = {"model": "scripted"}

    def __init__(self, said):
        self.said, self.asked = said, []

    def answer(self, images, asked):
        self.asked.append([(images[line.place].size, line.question) for line in asked])
        return [Answered(self.said[line.question[0]], self.said[line.question[0]] > 0.5, "No") for line in asked]


def record(*letters, prompt="a lamp"):
    atoms = [Atom(f"{letter}?", number=n, skills=(letter, "all")) for n, letter in enumerate(letters, start=1)]
    return question_record(prompt, atoms, tag="t")


def test_all_questions_of_all_images_are_asked_at_once_and_come_back_to_their_image():
    scripted = Scripted({"a": 0.9, "b": 0.4, "c": 0.8})
    images = [Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))]
    judge = QuestionJudge(scripted, Style("test", suffix=" Say."))
    first, second = judge.judge_images([record("a", "b"), record("c")], images)
    assert scripted.asked == [[((8, 8), "a? Say."), ((8, 8), "b? Say."), ((16, 8), "c? Say.")]]
    assert (first.correct, first.reason) == (False, "b? No, not Yes")
    assert (second.correct, second.reason) == (True, "")
    assert first.figures["Soft-TIFA AM"] == pytest.approx(0.65)
    assert first.to_dict()["atoms"] == [{"skills": ["a", "all"], "score": 0.9}, {"skills": ["b", "all"], "score": 0.4}]


@pytest.mark.parametrize(("rule", "scores"), [("dpg", [1.0, 0.0]), ("share", [1.0, 0.0]), ("product", [0.9, 0.4])])
def test_hard_rules_have_hard_marks(rule, scores):
    judge = QuestionJudge(Scripted({"a": 0.9, "b": 0.4}), Style("test", rule))
    (verdict,) = judge.judge_images([record("a", "b")], [Image.new("RGB", (8, 8))])
    assert [atom["score"] for atom in verdict.atoms] == scores


def test_many_wrong_answers_are_counted():
    judge = QuestionJudge(Scripted(dict.fromkeys("abcdefgh", 0.0)), Style("test"))
    (verdict,) = judge.judge_images([record(*"abcdefgh")], [Image.new("RGB", (8, 8))])
    assert verdict.reason.endswith("; and 3 more")


def test_identity_depends_on_how_it_is_asked():
    styles = [Style("x"), Style("x", suffix="!"), Style("x", "dpg")]
    identities = [str(QuestionJudge(Scripted({}), style).identity) for style in styles]
    assert len(set(identities)) == 3


def test_refused():
    with pytest.raises(ValueError, match="rule should be one of soft-tifa"):
        QuestionJudge(Scripted({}), Style("x", "softest"))
    with pytest.raises(ValueError, match="a record for each of 2 images, got 1"):
        QuestionJudge(Scripted({}), Style("x")).judge_images([record("a")], [Image.new("RGB", (8, 8))] * 2)
    assert QuestionJudge(Scripted({}), Style("x")).judge_images([], []) == []


class Sighted:
    """Reads the drawing of the self-test: it has a red circle."""

    identity = {"model": "sighted"}

    def __init__(self, *, fooled=False):
        self.fooled = fooled

    def answer(self, images, asked):
        seen = [images[0].getpixel((images[0].width // 2, images[0].height // 2)) == (210, 20, 30)] * len(asked)
        right = [self.fooled or ("circle" in line.question and ok) for line, ok in zip(asked, seen, strict=True)]
        return [Answered(float(value), value, "") for value in right]


def test_self_test():
    QuestionJudge(Sighted(), Style("x")).self_test()
    with pytest.raises(SelfTestError, match="'a dog' should be wrong"):
        QuestionJudge(Sighted(fooled=True), Style("x")).self_test()
    assert all(math.prod(case.image.size) for case in drawn_verdicts())
    assert set(RULES) == {"soft-tifa", "dpg", "vqascore", "product", "share"}
