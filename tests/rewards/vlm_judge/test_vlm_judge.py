"""The judge of single pictures, with a scripted engine: order, batches, errors, further tries."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge import FlawedAnswer, JudgeAnswerError, JudgeTemplate, VLMJudge
from tests.tiny.scripted_judge import ScriptedEngine

GREYS = torch.tensor([0.1, 0.5, 0.9, 0.3]).view(4, 1, 1, 1).expand(4, 3, 8, 8)


class Listing:
    """Answers by a list, in order; keeps the sampling of each call."""

    name = "listing"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.samplings = []

    def generate(self, images, messages, *, sampling):
        self.samplings.append(sampling)
        return [self.answers.pop(0) for _ in images]


def rubric(mark):
    return json.dumps({"alignment": mark, "quality": mark})


class Brightness(ScriptedEngine):
    """Marks by brightness, so that each picture has its own known score."""

    def answer(self, pictures, text):
        return rubric(1 + 9 * pictures[0].getpixel((0, 0))[0] / 255)


class Swapping(Brightness):
    """A saboteur: gives the answers to its first two pictures to each other."""

    def generate(self, images, messages, *, sampling):
        answers = super().generate(images, messages, sampling=sampling)
        return [answers[1], answers[0], *answers[2:]]


def check_each_image_gets_its_own_score(engine):
    expected = 1 + 9 * (GREYS[:, 0, 0, 0] * 255).round() / 255
    assert_close(VLMJudge(engine)(GREYS, "grey"), expected)


def test_each_image_gets_its_own_score():
    check_each_image_gets_its_own_score(Brightness())


def test_swapped_answers_are_noticed():
    with pytest.raises(AssertionError, match="not close"):
        check_each_image_gets_its_own_score(Swapping())


def test_sizes_may_differ_and_come_back_in_order():
    sizes = [(8, 8), (4, 6), (8, 8), (4, 6)]
    pictures = [Image.new("RGB", size, (grey,) * 3) for size, grey in zip(sizes, (0, 255, 51, 102), strict=True)]
    assert_close(VLMJudge(Brightness())(pictures, "grey"), torch.tensor([1.0, 10.0, 2.8, 4.6]))


def test_verdicts_have_score_and_answer():
    verdicts = VLMJudge(Brightness())
    first, second = verdicts.verdicts(GREYS[:2], ["a", "b"])
    assert first.answer == rubric(1 + 9 * 26 / 255)
    assert second.score > first.score


def test_questions_go_out_in_batches_with_their_prompts():
    engine = Brightness()
    VLMJudge(engine, batch_size=3)(GREYS, ["a cat", "a dog", "a cat", "a fish"])
    assert [len(call) for call in engine.calls] == [3, 1]
    assert "a fish" in engine.calls[1][0][0]["content"][-1]["text"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_unreadable_answer_names_image_prompt_and_answer(batch_size):
    judge = VLMJudge(Listing(rubric(3), rubric(4), "I'm sorry.", rubric(5)), batch_size=batch_size)
    with pytest.raises(JudgeAnswerError) as caught:
        judge(GREYS, ["a", "b", "c", "d"])
    assert caught.value.indices == (2,)
    assert (caught.value.prompt, caught.value.answer, caught.value.judge) == ("c", "I'm sorry.", "vlm-judge")
    assert str(caught.value) == (
        "vlm-judge, image 2, prompt 'c': expected one JSON object, found none. The answer was \"I'm sorry.\"."
    )


def test_the_index_is_the_callers_where_sizes_differ():
    pictures = [torch.zeros(3, 8, 8), torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)]
    for call in ("__call__", "verdicts"):
        answers = [rubric(3), "no", rubric(3)] if call == "__call__" else [rubric(3), rubric(3), "no"]
        with pytest.raises(JudgeAnswerError, match="image 2"):
            getattr(VLMJudge(Listing(*answers)), call)(pictures, "x")


def test_a_flawed_answer_is_never_read():
    cut = FlawedAnswer(rubric(7), flaw="it was cut off at 5 tokens")
    with pytest.raises(JudgeAnswerError, match="it was cut off at 5 tokens"):
        VLMJudge(Listing(cut))(GREYS[:1], "x")


def test_long_answers_are_quoted_in_part():
    with pytest.raises(JudgeAnswerError) as caught:
        VLMJudge(Listing("no " * 1000))(GREYS[:1], "x")
    assert len(str(caught.value)) < 1200
    assert len(caught.value.answer) == 3000


def test_retries_ask_again_only_what_failed_each_time_with_another_seed():
    engine = Listing(rubric(2), "no", rubric(4), "?", "no", rubric(3), rubric(5))
    judge = VLMJudge(engine, on_unparsable="retry", num_retries=3)
    assert judge(GREYS, "x").tolist() == pytest.approx([2, 5, 4, 3])
    assert engine.answers == []
    assert [(s.temperature, s.seed) for s in engine.samplings] == [(0.0, 0), (0.7, 1), (0.7, 2)]


def test_retries_come_to_an_end():
    engine = Listing("no", "no", "still no")
    with pytest.raises(JudgeAnswerError, match="still no"):
        VLMJudge(engine, on_unparsable="retry", num_retries=2)(GREYS[:1], "x")
    assert engine.answers == []


def test_without_retry_nothing_is_asked_twice():
    engine = Listing("no", rubric(3))
    with pytest.raises(JudgeAnswerError):
        VLMJudge(engine)(GREYS[:1], "x")
    assert engine.answers == [rubric(3)]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [([], ValueError, "0 answers to 2"), ([rubric(3), None], TypeError, "list of texts"), ("ab", TypeError, "texts")],
)
def test_an_engine_that_breaks_its_contract_raises(answers, error, message):
    class Broken:
        name = "broken"

        def generate(self, images, messages, *, sampling):
            return answers

    with pytest.raises(error, match=message):
        VLMJudge(Broken())(GREYS[:2], "x")


def test_a_template_of_ones_own():
    def parse(answer):
        return float(answer.removesuffix("%"))

    likeness = JudgeTemplate(
        name="likeness", summary="percent", text="{prompt}?", parse=parse, score_range=(0, 100), max_new_tokens=5
    )
    engine = Listing("40%")
    judge = load_reward("vlm-judge", template=likeness, engine=engine)
    assert judge(GREYS[:1], "a cat").tolist() == [40.0]
    assert judge.card.name == "vlm-judge-likeness"
    assert judge.card.typical_range == (0, 100)
    assert engine.samplings[0].max_new_tokens == 5
    with pytest.raises(JudgeAnswerError, match="400 is outside the range"):
        VLMJudge(Listing("400%"), likeness)(GREYS[:1], "a cat")


def test_template_by_name_is_the_registered_one():
    judge = load_reward("vlm-judge", template="safety", engine=ScriptedEngine(), max_new_tokens=99)
    assert judge.card.name == "vlm-judge-safety"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "beauty"}, "Unknown template 'beauty'. Known: rubric"),
        ({"on_unparsable": "zero"}, "on_unparsable"),
        ({"num_retries": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"template": "preference"}, "for a PreferenceJudge"),
    ],
)
def test_impossible_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        VLMJudge(ScriptedEngine(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": ScriptedEngine(), "model": "m"}, "model: set these up in the engine"),
        ({"engine": ScriptedEngine(), "torch_dtype": torch.float16}, "torch_dtype: set these up"),
        ({"base_url": "http://localhost:1/v1"}, "name the model"),
        ({"base_url": "http://localhost:1/v1", "model": "m", "revision": "v"}, "revision: only for local"),
        ({"engine": ScriptedEngine(), "both_orders": False}, "both_orders: only for templates that compare"),
        ({"engin": ScriptedEngine()}, "engin"),
    ],
)
def test_options_that_do_not_go_together_raise(options, message):
    with pytest.raises(TypeError, match=message):
        load_reward("vlm-judge", **options)


def test_weights_of_the_engine_move_with_the_reward():
    engine = Brightness()
    engine.network = nn.Linear(1, 1)
    judge = VLMJudge(engine).to(dtype=torch.float64)
    assert engine.network.weight.dtype == torch.float64
    assert judge.device == torch.device("cpu")


def test_images_that_ask_for_a_gradient_are_scored():
    images = GREYS.clone().requires_grad_()
    assert not VLMJudge(Brightness())(images, "x").requires_grad
