"""A template that runs once: its questions are those of a template that runs each time, whatever it does to them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from jinja2 import Template

from fk_reward.rewards.question_texts import QuestionTexts, question_text

PLAIN = "{% for turn in turns %}<{{ turn.role }}>{% for part in turn.content %}{{ part.text or '<image>' }}{% endfor %}"
PLAIN += "{% endfor %}<assistant>"
TRIMMED = PLAIN.replace("part.text or", "(part.text or '') | trim or")
LOWER = PLAIN.replace("part.text or", "(part.text or '') | lower or")
TWICE = PLAIN + "{{ turns[-1].content[-1].text }}"
QUESTIONS = ["Is it red?", " A {b} cat?\n", "", "user", "é {{ x }} $& \\1"]


class Processor(SimpleNamespace):
    """Counts how often its template runs."""

    image_token = "<image>"  # noqa: S105 (no password)

    def apply_chat_template(self, turns, **_):
        self.runs += 1
        return Template(self.chat_template).render(turns=turns)


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, LOWER, TWICE])
@pytest.mark.parametrize("way", [{}, {"system": "Be brief."}])
def test_texts_are_those_of_the_template(template, way):
    check_texts(template, way)


@pytest.mark.parametrize("template", [PLAIN, TWICE])
def test_texts_with_the_image_behind_them(template):
    check_texts(template, {"image_first": False})


def check_texts(template, way):
    processor = Processor(chat_template=template, runs=0)
    texts = QuestionTexts(processor)
    for question in QUESTIONS * 2:
        assert texts(question, **way) == question_text(processor, question, **way)


@pytest.mark.parametrize(("template", "runs"), [(PLAIN, 2), (LOWER, 1 + len(QUESTIONS))])
def test_the_template_runs_once_unless_it_changes_questions(template, runs):
    # Once more for the question that is empty.
    processor = Processor(chat_template=template, runs=0)
    texts = QuestionTexts(processor)
    for question in QUESTIONS * 2:
        texts(question)
    assert processor.runs == runs


def test_another_template_is_noticed():
    processor = Processor(chat_template=PLAIN, runs=0)
    texts = QuestionTexts(processor)
    before = texts("a?")
    processor.chat_template = PLAIN + "!"
    assert texts("a?") == before + "!"


def test_the_placeholder_is_refused_each_time():
    texts = QuestionTexts(Processor(chat_template=PLAIN, runs=0))
    for _ in range(2):
        with pytest.raises(ValueError, match="must not contain '<image>'"):
            texts("a <image>?")


def test_without_a_template_the_question_stays():
    assert QuestionTexts(SimpleNamespace(chat_template=None))("<image> a cat?") == "<image> a cat?"
