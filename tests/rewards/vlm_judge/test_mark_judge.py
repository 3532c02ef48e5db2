"""Marks at their places: against whole sequences of a model, against hand-made probabilities, and read as text."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.vlm_judge import JudgeAnswerError, MarkJudge, MarkQuestion, MarkTemplate, TransformersEngine
from fk_reward.rewards.vlm_judge.author_templates import (
    evalalign_template,
    llavaguard_template,
    python_strings,
    viescore_template,
)
from fk_reward.rewards.vlm_judge.marks import numbers
from tests.tiny.author_words import POLICY, PROMPTS, write_author_words
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

PICTURES = [[Image.new("RGB", (56, 56), "red")], [Image.new("RGB", (84, 56), "blue")]]
MESSAGES = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    for text in ("how red?", "and how good is this one?")
]
MARKS = [str(number) for number in range(11)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_author_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = write_qwen2_5_vl(tmp_path_factory.mktemp("judge") / "qwen")
    return TransformersEngine.from_pretrained(folder, torch_dtype=torch.float32)


@torch.no_grad()
def sequence_log_probs(engine, pictures, messages, opening, words):
    """Log-probability of each token of the words after the opening, in one pass over all of it, alone."""
    processor = engine.model.processor
    start = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + opening
    inputs = processor(text=[start + words], images=pictures, return_tensors="pt")
    count = len(processor.tokenizer(words, add_special_tokens=False)["input_ids"])
    logits = engine.model.model(**inputs).logits[0].float().log_softmax(dim=-1)
    ids = inputs["input_ids"][0]
    return [logits[place - 1, ids[place]].item() for place in range(len(ids) - count, len(ids))]


def expected_weights(engine, row, opening):
    """Of one conversation: marks of one token by it, "1" and "10" by what follows it, too."""
    weights = []
    for mark in MARKS:
        tokens = sequence_log_probs(engine, PICTURES[row], MESSAGES[row], opening, mark + "]")
        weights.append(sum(tokens[:2]) if mark in ("1", "10") else tokens[0])
    return weights


def check_weights(engine, weigh):
    opening = '{"score" : ['
    found = weigh(PICTURES, MESSAGES, openings=[opening] * 2, candidates=MARKS, ending="]")
    expected = [expected_weights(engine, row, opening) for row in (0, 1)]
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)
    assert (torch.tensor(expected[0]) - torch.tensor(expected[1])).abs().max() > 1e-2


def test_weights_are_those_of_whole_sequences(engine):
    check_weights(engine, engine.weigh)


def test_the_first_token_alone_would_be_noticed(engine):
    def careless(images, messages, *, openings, candidates, ending):
        found = engine.weigh(images, messages, openings=openings, candidates=candidates, ending=ending)
        digits = engine.weigh(images, messages, openings=openings, candidates=candidates[:10], ending="")
        return [[*some, some[1]] for some, _ in zip(digits, found, strict=True)]

    with pytest.raises(AssertionError):
        check_weights(engine, careless)


def test_a_candidate_that_begins_another_needs_an_ending(engine):
    with pytest.raises(ValueError, match="give an ending"):
        engine.weigh(PICTURES, MESSAGES, openings=["", ""], candidates=["1", "10"])


class Weigher:
    """Gives what a table says, by opening; keeps what it was asked."""

    name = "weigher"

    def __init__(self, table):
        self.table = table
        self.asked = []

    def weigh(self, images, messages, *, openings, candidates, ending=""):
        self.asked.append((list(openings), list(candidates), ending))
        return [
            [math.log(self.table(opening, message[0]["content"][1]["text"]).get(c, 1e-9)) for c in candidates]
            for opening, message in zip(openings, messages, strict=True)
        ]


def images(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_viescore_by_hand(words):
    def table(opening, text):
        if "prompt" in text.lower() and "natural" not in text:
            return {"9": 0.5, "8": 0.5}
        return {"4": 0.75, "0": 0.25} if opening.endswith("[") else {"10": 1.0}

    judge = MarkJudge(engine := Weigher(table), viescore_template(words.viescore))
    score = judge(images(2), "a red circle")
    assert_close(score, torch.full((2,), math.sqrt(8.5 * 3.0)), rtol=0, atol=1e-5)
    openings = [asked[0][0] for asked in engine.asked]
    assert '{\n"score" : [4, ' in openings, "the likeliest first mark stands before the second"
    assert judge.card.typical_range == (0, 10)


def test_a_zero_is_a_mark(words):
    judge = MarkJudge(Weigher(lambda opening, text: {"0": 1.0}), viescore_template(words.viescore))
    assert judge(images(1), "a").item() == pytest.approx(0, abs=1e-4)
    evalalign = MarkJudge(Weigher(lambda opening, text: {"0": 1.0}), evalalign_template(words.evalalign))
    assert evalalign(images(1), PROMPTS[0]).item() == pytest.approx(0, abs=1e-6)


def test_evalalign_is_the_mean_over_the_questions_of_the_prompt(words):
    judge = MarkJudge(
        Weigher(lambda opening, text: {"2": 1.0} if "circle" in text else {"1": 0.5, "0": 0.5}),
        evalalign_template(words.evalalign),
    )
    # circle: 2 and 0.5; square: 0.5 alone
    assert_close(judge(images(2), list(PROMPTS)), torch.tensor([1.25, 0.5]), rtol=0, atol=1e-5)


def test_an_unknown_prompt_has_no_questions(words):
    with pytest.raises(ValueError, match="no questions about the prompt 'a dog'"):
        MarkJudge(Weigher(lambda *_: {"1": 1.0}), evalalign_template(words.evalalign))(images(1), "a dog")


def test_llavaguard_is_the_log_odds_of_safe(words):
    template = llavaguard_template(words.llavaguard)
    judge = MarkJudge(engine := Weigher(lambda *_: {"Safe": 0.8, "Unsafe": 0.1}), template)
    assert judge(images(1), "").item() == pytest.approx(math.log(8))
    assert engine.asked[0][0] == ['{\n    "rating": "']
    assert template.questions("any")[0].text == POLICY
    assert judge.card.typical_range == (-10, 10)


class Writer:
    name = "writer"

    def __init__(self, *answers):
        self.answers = itertools.cycle(answers)

    def generate(self, images, messages, *, sampling):
        return [next(self.answers) for _ in images]


def test_text_is_an_option(words):
    writer = Writer('{"score": [9], "reasoning": ""}', '{"score": [4, 6], "reasoning": ""}')
    assert MarkJudge(writer, viescore_template(words.viescore), reading="text")(images(1), "a").item() == 6
    writer = Writer("2, All objects are included.", "0, none")
    assert MarkJudge(writer, evalalign_template(words.evalalign), reading="text")(images(1), PROMPTS[0]).item() == 1
    verdict = json.dumps({"rating": "Unsafe", "category": "O2: b", "rationale": "c"})
    guard = MarkJudge(Writer(verdict), llavaguard_template(words.llavaguard), reading="text")
    assert guard(images(1), "").item() == 0
    assert guard.card.typical_range == (0, 1)


@pytest.mark.parametrize("answer", ["", "no idea", '{"score": [11]}', '{"score": [true]}', '{"score": [1, 2]}'])
def test_an_answer_without_marks_raises(words, answer):
    with pytest.raises(JudgeAnswerError):
        MarkJudge(Writer(answer), viescore_template(words.viescore), reading="text")(images(1), "a")


@pytest.mark.parametrize("answer", ["All of them.", "3, more", "20"])
def test_evalalign_does_not_make_up_a_zero(words, answer):
    with pytest.raises(JudgeAnswerError, match="expected a mark"):
        MarkJudge(Writer(answer), evalalign_template(words.evalalign), reading="text")(images(1), PROMPTS[0])


def test_an_engine_without_probabilities_raises(words):
    with pytest.raises(TypeError, match='reading="text"'):
        MarkJudge(Writer(""), viescore_template(words.viescore))


def test_an_unknown_reading_raises(words):
    with pytest.raises(ValueError, match="logits"):
        MarkJudge(Writer(""), viescore_template(words.viescore), reading="json")


@pytest.mark.parametrize("name", ["viescore", "evalalign", "llavaguard"])
def test_the_wording_must_be_given(name):
    with pytest.raises(ValueError, match=r"github\.com"):
        load_reward(f"vlm-judge-{name}", engine=Writer(""))
    assert "copy" in reward_card(f"vlm-judge-{name}").licence


def test_files_of_another_form_raise(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="lacks the texts _context"):
        viescore_template(tmp_path / "a.py")
    with pytest.raises(ValueError, match="record 0"):
        evalalign_template(tmp_path / "a.json")
    with pytest.raises(ValueError, match="lacks"):
        llavaguard_template(tmp_path)
    with pytest.raises(FileNotFoundError, match="authors' file"):
        viescore_template(tmp_path / "none.py")


def test_files_of_authors_are_not_run(tmp_path):
    (tmp_path / "a.py").write_text('raise SystemExit\ntext = "kept"\n')
    assert python_strings(tmp_path / "a.py", ["text"]) == {"text": "kept"}


def test_names_in_f_strings_stay_and_other_expressions_are_no_texts(tmp_path):
    (tmp_path / "a.py").write_text('text = ("a " f"[{prompt}]")\nother = f"{len(prompt)}"\n')
    assert python_strings(tmp_path / "a.py", ["text"]) == {"text": "a [{prompt}]"}
    with pytest.raises(ValueError, match="other"):
        python_strings(tmp_path / "a.py", ["other"])


def test_safety_by_log_odds_and_by_text():
    safe = load_reward("vlm-judge-safety", engine=Weigher(lambda *_: {"Safe": 0.5, "Unsafe": 0.25}))
    assert safe(images(1), "").item() == pytest.approx(math.log(2))
    verdict = json.dumps({"rating": "Safe", "category": "NA: none", "rationale": "c"})
    by_text = load_reward("vlm-judge-safety", engine=Writer(verdict), reading="text")
    assert by_text(images(1), "").item() == 1
    with pytest.raises(TypeError, match='reading="text"'):
        load_reward("vlm-judge-safety", engine=Writer(verdict))
    with pytest.raises(ValueError, match="reading"):
        load_reward("vlm-judge-safety", reading="words")


def test_a_local_model_gives_continuous_scores(engine, words):
    judge = load_reward("vlm-judge-viescore", engine=engine, words=words.viescore)
    scores = judge([picture for (picture,) in PICTURES], "a red square")
    assert ((scores > 0) & (scores < 10)).all()
    alone = torch.cat([judge(picture, "a red square") for picture in PICTURES])
    assert_close(scores, alone, rtol=0, atol=1e-4)
    assert scores[0] != scores[1]


@pytest.mark.parametrize("change", [{"text": " "}, {"values": {"1": 1.0}}, {"separators": ()}])
def test_a_question_needs_text_values_and_marks(change):
    settings = {"text": "a", "values": numbers(0, 2), "separators": ("",), "read": lambda answer: (0.0,)}
    with pytest.raises(ValueError, match="A question needs"):
        MarkQuestion(**settings | change)


def test_a_template_of_ones_own():
    question = MarkQuestion(text="Good?", values={"yes": 1.0, "no": 0.0}, separators=("",), read=lambda answer: (1.0,))
    template = MarkTemplate(
        name="good",
        summary="a",
        questions=lambda prompt: (question,),
        combine=lambda marks: marks[0][0],
        score_range=(0, 1),
    )
    judge = MarkJudge(Weigher(lambda *_: {"yes": 0.3, "no": 0.1}), template)
    assert judge(images(1), "a").item() == pytest.approx(0.75)
