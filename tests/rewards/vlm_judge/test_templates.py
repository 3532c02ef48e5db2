"""What each template reads from an answer, and what it refuses to."""

from __future__ import annotations

import json
import math
import re

import pytest

from fk_reward.rewards.vlm_judge import TEMPLATES, JudgeTemplate, question_template

QUESTIONS = dict.fromkeys(("objects", "count", "colour", "position", "action", "style"), 2)
SAFE = {"rating": "Safe", "category": "NA: none", "rationale": "A red circle."}
UNSAFE = {"rating": "Unsafe", "category": "O2: Violence or cruelty", "rationale": "A fight."}

READABLE = [
    ("rubric", '{"alignment": 10, "quality": 10}', 10.0),
    ("rubric", '{"reason": "good", "alignment": 2, "quality": 8}', 4.0),
    ("rubric", '{"alignment": 7.5, "quality": 7.5}', 7.5),
    ("rubric", 'Here it is:\n```json\n{"alignment": 1, "quality": 1}\n```\nIs there more?', 1.0),
    ("rubric", '<think>{"alignment": 1, "quality": 1}?</think>{"alignment": 9, "quality": 9}', 9.0),
    ("alignment", json.dumps(QUESTIONS), 1.0),
    ("alignment", json.dumps(QUESTIONS | {"count": 0, "style": "n/a"}), 0.8),
    ("alignment", json.dumps(dict.fromkeys(QUESTIONS, "n/a") | {"objects": 1.0}), 0.5),
    ("safety", json.dumps(SAFE), 1.0),
    ("safety", json.dumps(UNSAFE), 0.0),
    ("safety", json.dumps(SAFE | {"category": "O9"}), 1.0),
    ("preference", "<think>The first shows it.</think> <answer>1</answer>", 1.0),
    ("preference", "<think>One says <answer>1</answer>, but no.</think>\n<answer> 2 </answer>", 0.0),
    ("preference", "The second is better. <answer>2</answer>", 0.0),
]
UNREADABLE = [
    ("rubric", "", "found none"),
    ("rubric", "I cannot help with that.", "found none"),
    ("rubric", "8", "found none"),
    ("rubric", '{"alignment": 8, "qual', "broken"),
    ("rubric", '{"alignment": 8}', "quality is missing"),
    ("rubric", '{"alignment": 8, "quality": 11}', "between 1 and 10, got 11"),
    ("rubric", '{"alignment": 0, "quality": 5}', "between 1 and 10, got 0"),
    ("rubric", '{"alignment": "8/10", "quality": 5}', "must be a number"),
    ("rubric", '{"alignment": true, "quality": 5}', "must be a number"),
    ("rubric", '{"alignment": NaN, "quality": 5}', "NaN is not a number"),
    ("rubric", '{"alignment": 1e999, "quality": 5}', "between 1 and 10"),
    ("rubric", '{"alignment": null, "quality": 5}', "must be a number"),
    ("rubric", '{"alignment": 3, "alignment": 9, "quality": 5}', "appears twice"),
    ("rubric", '{"alignment": 3, "quality": 5} or {"alignment": 9, "quality": 5}', "found 2"),
    ("rubric", '<think>{"alignment": 3, "quality": 5}', "the <think> block is not closed"),
    ("alignment", json.dumps({"objects": 2}), "no answer to count"),
    ("alignment", json.dumps(QUESTIONS | {"count": 3}), "between 0 and 2"),
    ("alignment", json.dumps(QUESTIONS | {"count": 1.5}), "0, 1 or 2"),
    ("alignment", json.dumps(QUESTIONS | {"count": "yes"}), "must be a number"),
    ("alignment", json.dumps(dict.fromkeys(QUESTIONS, "n/a")), "every question"),
    ("safety", json.dumps(SAFE | {"rating": "safe-ish"}), "rating must be"),
    ("safety", json.dumps(SAFE | {"category": "O10: else"}), "category must begin"),
    ("safety", json.dumps(UNSAFE | {"category": "NA: none"}), "no category applies"),
    ("safety", json.dumps({"rating": "Safe"}), "category is missing"),
    ("safety", json.dumps(SAFE | {"rating": 1}), "must be a text"),
    ("preference", "1", "found none"),
    ("preference", "<answer>3</answer>", "3"),
    ("preference", "<answer>both</answer>", "both"),
    ("preference", "<answer>1</answer><answer>2</answer>", "'1', '2'"),
    ("preference", "<answer>1</answer> or so <answer>1</answer>", "'1', '1'"),
    ("preference", "<think>I prefer <answer>1</answer>", "the <think> block is not closed"),
    ("preference", "<think>Long thoughts</think><ans", "found none"),
]


def check_refused(read, answer, message):
    with pytest.raises(ValueError, match=message):
        read(answer)


@pytest.mark.parametrize(("name", "answer", "expected"), READABLE)
def test_answers_are_read(name, answer, expected):
    assert TEMPLATES[name].read(answer) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "answer", "message"), UNREADABLE)
def test_anything_else_raises(name, answer, message):
    check_refused(TEMPLATES[name].read, answer, message)


def first_number_or_zero(answer):
    digits = re.findall(r"\d+", answer)
    return float(digits[0]) if digits else 0.0


@pytest.mark.parametrize(("name", "answer", "message"), UNREADABLE)
def test_a_reader_that_makes_numbers_up_is_noticed(name, answer, message):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_refused(first_number_or_zero, answer, message)


@pytest.mark.parametrize("name", TEMPLATES)
def test_scores_span_the_documented_range(name):
    scores = [expected for template, _, expected in READABLE if template == name]
    low, high = TEMPLATES[name].score_range
    assert low <= min(scores)
    assert max(scores) == high


@pytest.mark.parametrize("name", TEMPLATES)
def test_instructions_show_the_prompt_and_the_form(name):
    template = TEMPLATES[name]
    content = template.messages("a {curly} star")[0]["content"]
    text = content[-1]["text"]
    assert ("a {curly} star" in text) == (name != "safety")  # the policy is about the picture alone
    assert "{prompt}" not in text
    assert "<answer>" in text if template.pairwise else "one JSON object" in text
    assert sum(part["type"] == "image" for part in content) == (2 if template.pairwise else 1)


def test_a_score_out_of_the_range_of_ones_own_template_raises():
    settings = {"summary": "length", "text": "{prompt}?", "score_range": (0.0, 1.0)}
    for parsed in (1.5, math.nan, math.inf):
        template = JudgeTemplate(name="own", parse=lambda _, parsed=parsed: parsed, **settings)
        with pytest.raises(ValueError, match="outside the range of 'own'"):
            template.read("...")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"name": " "}, "name"), ({"score_range": (1, 1)}, "low < high"), ({"pairwise": True}, r"\(0, 1\)")],
)
def test_impossible_templates_raise(changed, message):
    settings = {"name": "own", "summary": "s", "text": "t", "parse": float, "score_range": (0.0, 2.0)}
    with pytest.raises(ValueError, match=message):
        JudgeTemplate(**settings | changed)


def test_a_list_of_no_questions_raises():
    with pytest.raises(ValueError, match="at least one"):
        question_template("empty", {})
