"""Answers of a local model against GenEval 2's formulas on the model's own generation, and answers in words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import gmean
from transformers import GenerationConfig

from fk_reward.benchmarks.questions.answerers import Asked, EngineAnswerer, ModelAnswerer
from fk_reward.benchmarks.questions.atoms import spellings
from fk_reward.benchmarks.questions.geneval2 import read_geneval2
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, QuestionJudge
from fk_reward.rewards.answer_model import load_answer_model
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer
from tests.tiny.answer_models import write_qwen3_vl

ROWS = [
    {
        "prompt": "three plastic lamps behind a cup",
        "atom_count": 5,
        "vqa_list": [
            ["How many lamps are in the image?", "three"],
            ["Are the lamps plastic?", "Yes"],
            ["Are there any lamps in the image?", "Yes"],
            ["Are the lamps behind the cup?", "Yes"],
            ["How many cups are in the image?", "one"],
            ["Are there any cups in the image?", "Yes"],
        ],
        "skills": ["count", "attribute", "object", "position", "count", "object"],
    },
    {
        "prompt": "seven kites",
        "atom_count": 2,
        "vqa_list": [["How many kites are in the image?", "seven"], ["Are there any kites in the image?", "Yes"]],
        "skills": ["count", "object"],
    },
]
NUMERALS = {"one": "1", "two": "2", "three": "3", "seven": "7"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random Qwen3-VL in the files and names of the hub's."""
    folder = write_qwen3_vl(tmp_path_factory.mktemp("qwen3-vl"))
    return load_answer_model(folder, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return read_geneval2(path)


@pytest.fixture(scope="module")
def images():
    """Two images of different sizes, of which nothing is regular."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((48, 64), (32, 32))
    arrays = [torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy() for size in sizes]
    return [Image.fromarray(array) for array in arrays]


def official_probability(model, question, answer, image):
    """The formulas of GenEval 2's `evaluation.py` in our words: one image, one question, the model's own generation."""
    if question.startswith("How many"):
        forms = [answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}"]
        forms += [NUMERALS[answer], f" {NUMERALS[answer]}"]
    else:
        forms = ["Yes", "yes", " yes", " Yes"]
    content = [{"type": "image"}, {"type": "text", "text": f"{question} Answer in one word."}]
    turns = [{"role": "user", "content": content}]
    text = model.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    inputs = model.processor(images=[image], text=[text], return_tensors="pt")
    greedy = GenerationConfig(max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True)
    result = model.model.generate(**inputs, generation_config=greedy)
    probabilities = result.scores[0].softmax(dim=-1)[0]
    return sum(probabilities[model.processor.tokenizer.encode(form)[0]].item() for form in forms)


def official_scores(model, images):
    return [
        [official_probability(model, question, answer, image) for question, answer in row["vqa_list"]]
        for row, image in zip(ROWS, images, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(model, images):
    return official_scores(model, images)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_soft_tifa_agrees_with_the_official_formulas(model, records, images, expected, batch_size):
    judge = QuestionJudge(ModelAnswerer(model, name="tiny", batch_size=batch_size), SOFT_TIFA)
    verdicts = judge.judge_images(records, images)
    for verdict, scores in zip(verdicts, expected, strict=True):
        assert [atom["score"] for atom in verdict.atoms] == pytest.approx(scores, abs=1e-5)
        assert verdict.figures["Soft-TIFA AM"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        assert verdict.figures["Soft-TIFA GM"] == pytest.approx(gmean(scores), abs=1e-5)


class OneSpelling(ModelAnswerer):
    """Looks for the first spelling only."""

    def _read(self, probabilities, asked):
        return super()._read(probabilities, asked._replace(spellings=asked.spellings[:1]))


class OtherImage(ModelAnswerer):
    """Asks about the other image of two."""

    def answer(self, images, asked):
        return super().answer(images[::-1], asked)


@pytest.mark.parametrize("broken", [OneSpelling, OtherImage])
def test_a_broken_judge_is_found_out(model, records, images, expected, broken):
    judge = QuestionJudge(broken(model, name="tiny"), SOFT_TIFA)
    found = [[atom["score"] for atom in verdict.atoms] for verdict in judge.judge_images(records, images)]
    assert max(abs(a - b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True)) > 1e-3


def test_without_the_suffix_the_scores_are_others(model, records, images, expected):
    answered = ModelAnswerer(model, name="tiny").answer(
        images, [Asked(0, question, spellings(question, answer)) for question, answer in ROWS[0]["vqa_list"]]
    )
    found = [answer.probability for answer in answered]
    assert max(abs(a - b) for a, b in zip(found, expected[0], strict=True)) > 1e-3


def test_what_is_right_is_what_the_model_says_greedily(model, images, monkeypatch):
    """With the most likely token as the answer it is right, with the next one it is not."""
    question = "How many lamps are in the image? Answer in one word."
    pixels = torch.from_numpy(np.asarray(images[0]).transpose(2, 0, 1)[None].copy())
    best, second = model(pixels, [question])[0].topk(2).indices.tolist()
    for token, right in ((best, True), (second, False)):
        monkeypatch.setattr(type(model), "token_ids", lambda self, text, token=token: [token])
        (answered,) = ModelAnswerer(model, name="tiny").answer(images[:1], [Asked(0, question, ("Yes",))])
        assert answered.right == right


def test_nothing_asked_is_nothing_answered(model, images):
    assert ModelAnswerer(model, name="tiny").answer(images, []) == []


def test_a_control_token_in_a_question_raises(model, images):
    with pytest.raises(ValueError, match="must not contain"):
        ModelAnswerer(model, name="tiny").answer(images, [Asked(0, "Is <|image_pad|> there?", ("Yes",))])


class Scripted:
    """An engine that says what it is told."""

    name = "scripted"

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def generate(self, images, messages, *, sampling):
        pairs = zip(images, messages, strict=True)
        self.asked += [(group[0].size, message[0]["content"][1]["text"]) for group, message in pairs]
        return [self.texts.pop(0) for _ in messages]


def test_words_of_an_engine(images):
    engine = Scripted("**Yes**, it is.", "no", "three lamps", "3")
    asked = [Asked(place, f"Q{place}?", forms) for place, forms in ((0, ("Yes",)), (1, (" yes",)))]
    counts = [Asked(0, "How many?", ("three", "3")), Asked(1, "How many?", ("three", " 3"))]
    answers = EngineAnswerer(engine, batch_size=3).answer(images, [*asked, *counts])
    assert [(one.probability, one.right, one.said) for one in answers] == [
        (1.0, True, "Yes"),
        (0.0, False, "no"),
        (1.0, True, "three"),
        (1.0, True, "3"),
    ]
    assert engine.asked[1] == (images[1].size, "Q1?")


@pytest.mark.parametrize("text", [FlawedAnswer("Yes", flaw="it was cut off"), "...", ""])
def test_an_answer_without_a_word_is_no_answer(images, text):
    with pytest.raises(ValueError, match="scripted was asked 'Is it red\\?'"):
        EngineAnswerer(Scripted(text)).answer(images, [Asked(0, "Is it red?", ("Yes",))])


def test_identity_tells_models_apart(model, tmp_path):
    other = load_answer_model(write_qwen3_vl(tmp_path, seed=1), torch_dtype=torch.float32)
    one, two = (ModelAnswerer(each, name="tiny").identity for each in (model, other))
    assert one["weights"] != two["weights"]
    assert math.isfinite(len(json.dumps(one)))
