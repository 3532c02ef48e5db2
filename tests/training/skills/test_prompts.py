"""Prompts of a skill: by rules, of the shapes world, and by a language model."""

from __future__ import annotations

import pytest

from fk_reward.rewards.vlm_judge.engine import FlawedAnswer
from fk_reward.shapes import heldout_prompts, train_prompts
from fk_reward.training.skills.prompts import (
    PromptWriter,
    prompts_by_rules,
    prompts_in,
    prompts_of_shapes,
    read_prompt_lines,
    write_prompts,
)
from fk_reward.training.skills.templates import Templates


class Writer:
    """A language model that answers by a script and keeps what it was asked."""

    name = "writer"

    def __init__(self, *answers):
        self.answers, self.asked, self.seeds = list(answers), [], []

    def generate(self, images, messages, *, sampling):
        assert [list(own) for own in images] == [[]]
        self.asked.append(messages[0][0]["content"][0]["text"])
        self.seeds.append(sampling.seed)
        assert sampling.temperature > 0
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]


def writer(*answers, **options):
    return PromptWriter(engine=Writer(*answers), description="counting", examples=["two cats on a sofa"], **options)


def test_by_rules():
    templates = Templates.parse("n = two | three | four\n{n} cats\n{n} cats")
    assert sorted(prompts_by_rules(templates).prompts) == ["four cats", "three cats", "two cats"]
    assert len(prompts_by_rules(templates, 2).prompts) == 2
    near = prompts_by_rules(templates, max_similarity=0.4)
    assert (len(near.prompts), near.num_dropped) == (1, 5)


def test_of_shapes_nothing_is_held_out():
    found = prompts_of_shapes("position").prompts
    assert sorted(found) == sorted(prompt.text for prompt in train_prompts("position"))
    assert not set(found) & {prompt.text for prompt in heldout_prompts()}


def test_a_language_model_is_asked_until_there_are_enough():
    model = writer(
        "Sure:\n1. three dogs in a park\n2. two cats on a sofa!\n3. three dogs in a park",
        "- four red kites over a beach\n- five pears in a bowl",
    )
    found = model.write(3)
    assert found.prompts == ["three dogs in a park", "four red kites over a beach", "five pears in a bowl"]
    assert found.num_dropped == 2  # the example, and its own repetition
    assert "two cats on a sofa" in model.engine.asked[0]
    assert "three dogs in a park" in model.engine.asked[1]
    assert len(set(model.engine.seeds)) == 2


def test_of_an_answer_that_was_cut_off_the_whole_lines_count():
    cut = FlawedAnswer("three dogs in a park\nfour red ki", flaw="it was cut off at 9 tokens")
    assert writer(cut).write(1).prompts == ["three dogs in a park"]


def test_a_refusal_and_a_repetition_are_told():
    with pytest.raises(ValueError, match="wrote no prompts: the model refused"):
        writer(FlawedAnswer("I cannot.", flaw="the model refused")).write(1)
    with pytest.raises(ValueError, match="repeats itself: 1 of 5 prompts after 3 requests"):
        writer("six swans", num_fruitless=2).write(5)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"per_request": 0}, {"max_similarity": 2.0}])
def test_bad_settings(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        writer("six swans", **options)


def test_lines_of_answers():
    assert prompts_in('10) "A cat"\n* a dog\n\nMore:\n2024 in a cafe') == ["A cat", "a dog", "2024 in a cafe"]


def test_files_of_prompts(tmp_path):
    path = write_prompts(tmp_path / "new" / "p.txt", ["two\ncats", "three dogs"])
    assert read_prompt_lines(path) == ["two cats", "three dogs"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompt_lines(path)
