"""The detector of the shapes world answers what rendered scenes show, and the suite runs as any other."""

from __future__ import annotations

import numpy as np
import pytest

from fk_reward.benchmarks.geneval.shapes import shapes_record
from fk_reward.benchmarks.questions.answerers import Asked
from fk_reward.benchmarks.questions.geneval2 import with_questions
from fk_reward.benchmarks.questions.judge import QuestionJudge
from fk_reward.benchmarks.questions.shapes import ShapesAnswerer, question_records, verifier_judge
from fk_reward.rewards.inputs import to_pil
from fk_reward.shapes import TASKS, Scene, SceneObject, all_prompts, render, sample_scene, verify

SCENE = Scene(
    (
        SceneObject("circle", "red", x=0.25, y=0.3, size=0.12),
        SceneObject("circle", "blue", x=0.25, y=0.75, size=0.12),
        SceneObject("cross", "green", x=0.75, y=0.3, size=0.14),
    )
)


@pytest.fixture(scope="module")
def image():
    return to_pil(render([SCENE]))[0]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("How many circles are in the image? Answer in one word.", "two"),
        ("How many crosses are in the image?", "one"),
        ("How many stars are in the image?", "zero"),
        ("Are there any crosses in the image?", "Yes"),
        ("Are there any stars in the image?", "No"),
        ("Is the cross green?", "Yes"),
        ("Are the circles red?", "No"),
        ("Is the star red?", "No"),
        ("Is there a red circle in the image?", "Yes"),
        ("Is there a red cross in the image?", "No"),
        ("Is the cross to the right of the circle?", "Yes"),
        ("Is the cross to the left of the circle?", "No"),
        ("Is the circle above the circle?", "Yes"),
        ('Does this figure show "a photo of a green cross"? Please answer yes or no.', "Yes"),
        ('Does this image show "a green star"?', "No"),
        ("a blue circle? Answer yes or no.", "Yes"),
        ("a blue cross?", "No"),
    ],
)
def test_answers(image, question, said):
    (answered,) = ShapesAnswerer().answer([image], [Asked(0, question, (said,))])
    assert (answered.said, answered.right, answered.probability) == (said, True, 1.0)
    (other,) = ShapesAnswerer().answer([image], [Asked(0, question, ("purple",))])
    assert (other.right, other.probability) == (False, 0.0)


def test_another_question_is_refused(image):
    with pytest.raises(ValueError, match="cannot be asked 'Why"):
        ShapesAnswerer().answer([image], [Asked(0, "Why is it red?", ("Yes",))])


def test_scenes_of_prompts_are_right_by_their_questions():
    records = question_records(60)
    rng = np.random.default_rng(0)
    from fk_reward.shapes import parse_prompt

    scenes = [sample_scene(parse_prompt(record["prompt"]), rng) for record in records]
    verdicts = verifier_judge().judge_images(records, to_pil(render(scenes)))
    assert [verdict.reason for verdict in verdicts if not verdict.correct] == []
    assert all(verdict.figures["Soft-TIFA GM"] == 1 for verdict in verdicts)


def test_questions_about_records_say_what_the_lenient_verifier_says():
    """On scenes of other prompts of the same task: the questions ask what GenEval's rules ask, in all six tasks."""
    rng = np.random.default_rng(1)
    judge, seen, right = verifier_judge(), set(), 0
    for task in TASKS:
        prompts = all_prompts(task)
        chosen = [prompts[i] for i in rng.integers(len(prompts), size=12)]
        images = render([sample_scene(prompt, rng) for prompt in chosen[1:] + chosen[:1]])
        records = [with_questions(shapes_record(prompt)) for prompt in chosen]
        for prompt, pixels, verdict in zip(chosen, images, judge.judge_images(records, to_pil(images)), strict=True):
            expected = verify(pixels, prompt, strict=False).correct
            assert verdict.correct == expected, (prompt, verdict.reason)
            seen.add(expected)
            right += expected
    assert seen == {True, False}


def test_self_test_and_a_blind_judge():
    verifier_judge().self_test()

    class Blind(ShapesAnswerer):
        def answer(self, images, asked):
            return [line._replace(right=False) for line in super().answer(images, asked)]

    from fk_reward.benchmarks.task import SelfTestError

    blind = QuestionJudge(Blind(), verifier_judge().style, known=verifier_judge().known)
    with pytest.raises(SelfTestError, match="should be correct"):
        blind.self_test()
