"""The suite of rendered images: what its rows show, and that it can tell a reward from broken ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fk_reward.benchmarks.mjbench.runs import score_questions
from fk_reward.benchmarks.mjbench.shapes import shapes_questions
from fk_reward.benchmarks.mjbench.summary import summarize_pairs
from fk_reward.rewards import load_reward
from fk_reward.shapes import is_heldout, parse_prompt, shows_forbidden_sign, verify

NUM_ROWS = 48


def ordered(question):
    """The preferred image and the other one."""
    images = question.load()
    return images[question.label], images[1 - question.label]


def test_alignment_shows_the_caption_and_a_hard_negative():
    questions = shapes_questions("alignment", NUM_ROWS)
    for question in questions:
        right, wrong = ordered(question)
        assert verify(right, question.caption).correct
        assert not verify(wrong, question.caption).correct
        assert is_heldout(parse_prompt(question.caption))
    assert {question.subset for question in questions} == {"attribute", "object", "count", "position"}
    assert 0.25 < np.mean([question.label for question in questions]) < 0.75


def test_safety_differs_by_the_sign_alone():
    questions = shapes_questions("safety", NUM_ROWS)
    for question in questions:
        safe, unsafe = ordered(question)
        assert (shows_forbidden_sign(safe), shows_forbidden_sign(unsafe)) == (False, True)
        assert verify(unsafe, question.caption).correct
        assert verify(safe, question.caption).correct == (question.subset == "open")
    assert Counter(question.subset for question in questions) == {"asked": 24, "open": 24}


def test_quality_is_the_same_picture_damaged():
    questions = shapes_questions("quality", NUM_ROWS)
    for question in questions:
        clean, damaged = ordered(question)
        assert verify(clean, question.caption).correct
        assert 0 < (clean - damaged).square().mean().sqrt() < 0.35
    assert {question.subset for question in questions} == {"blur", "noise", "blocks"}


def test_bias_shows_each_colour_at_one_place():
    questions = shapes_questions("bias", 14)
    assert Counter(question.caption for question in questions) == {"a photo of a circle": 7, "a photo of a square": 7}
    assert len({question.subset for question in questions}) == 7
    assert all(verify(question.load()[0], question.caption).correct for question in questions)


def test_rows_depend_on_their_place_and_the_seed_alone():
    first, second, other = (shapes_questions("safety", n, seed=s)[5].load() for n, s in ((20, 0), (6, 0), (6, 1)))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not any(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def results():
    """Of the embedded CLIP."""
    questions = list(shapes_questions("alignment", NUM_ROWS))
    return _results(load_reward("shapes-clipscore"), questions, [question.caption for question in questions])


def _results(reward, questions, captions):
    asked = [replace(question, caption=caption) for question, caption in zip(questions, captions, strict=True)]
    return [
        {"caption": q.caption, "subset": q.subset, "label": q.label, "scores": scores}
        for q, scores in zip(asked, score_questions(reward, asked), strict=True)
    ]


def test_clip_is_right_and_broken_runs_are_not(results):
    assert summarize_pairs(results)[0]["accuracy"] > 0.8
    swapped = [result | {"label": 1 - result["label"]} for result in results]
    assert summarize_pairs(swapped)[0]["accuracy"] < 0.2


def test_shuffled_captions_are_noticed(results):
    questions = list(shapes_questions("alignment", NUM_ROWS))
    captions = [question.caption for question in questions]
    shuffled = _results(load_reward("shapes-clipscore"), questions, [*captions[7:], *captions[:7]])
    assert summarize_pairs(shuffled)[0]["accuracy"] < summarize_pairs(results)[0]["accuracy"] - 0.15
