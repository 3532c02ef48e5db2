"""Where answers may end: every beginning of every readable answer, against the reader of the whole answer."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial

import pytest

from fk_reward.rewards.vlm_judge import TEMPLATES, Enough, close_match, close_object
from fk_reward.rewards.vlm_judge.author_templates import evalalign_template, llavaguard_template, viescore_template
from fk_reward.rewards.vlm_judge.imageguard import imageguard_template
from tests.rewards.vlm_judge.test_templates import READABLE, SAFE
from tests.tiny.author_words import PROMPTS, write_author_words

RAMBLING = "\nThe answer is final."
REASONED = '{"reason": "a {brace}, \\"quality\\": 1, and é", "quality": 10, "alignment": 10'


def check_no_end_changes_the_reading(read, enough, answer):
    """Returns the characters that had to be written; None where the answer never says enough."""
    expected, first = read(answer), None
    for length in range(len(answer) + 1):
        closed = enough.close(answer[:length])
        if closed is not None:
            assert read(closed) == expected
            first = length if first is None else first
        else:
            assert first is None, "what is enough remains enough"
    return first


@pytest.mark.parametrize(("name", "answer", "_"), READABLE)
def test_answers_of_the_package(name, answer, _):
    template = TEMPLATES[name]
    for text in (answer, answer + RAMBLING):
        check_no_end_changes_the_reading(template.read, template.enough, text)


def test_a_rationale_is_not_written():
    template, answer = TEMPLATES["safety"], json.dumps(SAFE | {"rationale": "long " * 99})
    written = check_no_end_changes_the_reading(template.read, template.enough, answer)
    assert answer[:written] == '{"rating": "Safe", "category": "NA: none"'
    assert template.enough.stop[0] in answer[written:]


def test_a_first_digit_is_no_number():
    template = TEMPLATES["rubric"]
    assert check_no_end_changes_the_reading(template.read, template.enough, REASONED + "}") == len(REASONED) + 1
    assert close_object(REASONED + "\n", keys=("alignment",)) is None
    hasty = Enough(close=lambda text: f"{found[0]}}}" if (found := re.match(r".*alignment\": \d", text)) else None)
    with pytest.raises(AssertionError):
        check_no_end_changes_the_reading(template.read, hasty, REASONED + "}")


def test_answers_in_the_words_of_authors(tmp_path):
    words = write_author_words(tmp_path)
    viescore, guard = viescore_template(words.viescore), llavaguard_template(words.llavaguard)
    evalalign, image_guard = evalalign_template(words.evalalign), imageguard_template(words.imageguard)
    cases = [
        (viescore.questions("a")[1].read, viescore.enough, '{"score": [10, 1], "reasoning": "None."}', 17),
        (guard.questions("a")[0].read, guard.enough, json.dumps(SAFE), 41),
        (evalalign.questions(PROMPTS[0])[0].read, evalalign.enough, "It is 2, all of them, 3 in number.", 8),
        (image_guard.read, image_guard.enough, "\n unsafe\nViolence\nHate", 9),
    ]
    for read, enough, answer, length in cases:
        assert check_no_end_changes_the_reading(read, enough, answer) == length


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{",
        '{"a"',
        '{"a": ',
        '{"a": "b',
        '{"a": 1',
        '{"a": tru',
        '{"a": [1, 2',
        '{"b": 1}',
        '{"b": 1} {"a": 1}',
        '{"b": 01, "a": 1}',
        '{1: 2, "a": 1}',
        '{"b" 1, "a": 1}',
        '{"b": 1 "a": 1}',
        '<think>{"a": 1}',
        '{"a": ' + "[" * 10**5,
        '{"a": ' + "9" * 5000 + ",",
    ],
)
def test_what_is_not_complete_or_broken_is_never_enough(answer):
    assert close_object(answer, keys=("a",)) is None


def test_a_choice_among_thoughts_that_are_not_marked_is_not_taken():
    enough = TEMPLATES["preference"].enough
    assert enough.close("I would say <answer>1</answer>, but") is None
    assert enough.close("<think><answer>1</answer></think> so <answer>2</answer> it is").endswith("<answer>2</answer>")


def test_a_template_may_be_written_to_its_end():
    assert dataclasses.replace(TEMPLATES["safety"], enough=None).enough is None
    assert Enough(close=partial(close_match, pattern=re.compile("b"))).close("abc") == "ab"
