"""The local engine on a tiny random Qwen2.5-VL: batches against transformers' own generation, one by one."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge import FlawedAnswer, JudgeAnswerError, Sampling, TransformersEngine
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

PICTURES = [[Image.new("RGB", (56, 56), "red")], [Image.new("RGB", (84, 56), color) for color in ("blue", "white")]]


def turn(*parts):
    return [{"role": "user", "content": [{"type": "image"} if part is None else text(part) for part in parts]}]


def text(words):
    return {"type": "text", "text": words}


MESSAGES = [turn(None, "red"), turn(None, "or", None, "which is a red one? use your eyes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen2_5_vl(tmp_path_factory.mktemp("judge") / "qwen")


@pytest.fixture
def engine(folder):
    return TransformersEngine.from_pretrained(folder, torch_dtype=torch.float32)


@torch.no_grad()
def alone(engine, pictures, messages, num_tokens):
    """What transformers itself writes for one conversation, which needs no padding."""
    processor, network = engine.model.processor, engine.model.model
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=pictures, return_tensors="pt")
    tokens = network.generate(**inputs, do_sample=False, max_new_tokens=num_tokens)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check_batch(engine):
    answers = engine.generate(PICTURES, MESSAGES, sampling=Sampling(max_new_tokens=5))
    expected = [alone(engine, *pair, 5) for pair in zip(PICTURES, MESSAGES, strict=True)]
    assert answers == expected
    assert expected[0] != expected[1]


def test_a_batch_is_answered_as_one_by_one(engine):
    check_batch(engine)


def test_padding_on_the_right_is_noticed(engine):
    engine.model.processor.tokenizer.padding_side = "right"
    try:
        with pytest.raises(AssertionError):
            check_batch(engine)
    finally:
        engine.model.processor.tokenizer.padding_side = "left"


def test_an_answer_without_end_is_marked(engine):
    answers = engine.generate(PICTURES, MESSAGES, sampling=Sampling(max_new_tokens=3))
    assert all(isinstance(answer, FlawedAnswer) for answer in answers)
    assert answers[0].flaw == "it was cut off at 3 tokens"
    with pytest.raises(JudgeAnswerError, match="cut off at 3 tokens"):
        load_reward("vlm-judge", engine=engine, max_new_tokens=3)(PICTURES[0], "red")


def test_sampling_depends_on_its_seed_alone(engine):
    def draw(seed):
        sampling = Sampling(max_new_tokens=8, temperature=2.0, seed=seed)
        return engine.generate(PICTURES[:1], MESSAGES[:1], sampling=sampling)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first = draw(1)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert draw(1) == first
    assert draw(2) != first


def script(engine, monkeypatch, answers):
    """Let the model write the given answers, with its end of turn, each at its own length."""
    tokenizer = engine.model.processor.tokenizer
    rows = [tokenizer(answer + "<|im_end|>")["input_ids"] for answer in answers]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])

    def generate(input_ids, **settings):
        assert settings["do_sample"] is False
        return torch.cat([input_ids, padded[: len(input_ids)]], dim=1)

    monkeypatch.setattr(engine.model.model, "generate", generate)


def test_from_folder_to_scores(folder, engine, monkeypatch):
    script(engine, monkeypatch, ['{"alignment": 9, "quality": 4}', '{"reason": "no", "alignment": 1, "quality": 4}'])
    judge = load_reward("vlm-judge", model=folder, torch_dtype=torch.float32)
    assert judge.engine.model is engine.model  # one model in memory
    assert judge(torch.rand(2, 3, 56, 56), "a red circle").tolist() == [6.0, 2.0]
    assert judge.device == torch.device("cpu")


def test_comparisons_from_folder_to_scores(folder, engine, monkeypatch):
    script(engine, monkeypatch, ["<think>so</think><answer>1</answer>", "<think>or so</think><answer>2</answer>"])
    judge = load_reward("vlm-judge-preference", model=folder, torch_dtype=torch.float32)
    assert judge(torch.rand(2, 3, 56, 56), "a red circle").tolist() == [1.0, 0.0]


def test_a_model_without_chat_template_raises(engine, monkeypatch):
    monkeypatch.setattr(engine.model.processor, "chat_template", None)
    with pytest.raises(ValueError, match="no chat template"):
        TransformersEngine(engine.model, name="tiny")


def test_dtype_and_revision_are_in_the_name(folder, engine):
    assert "float32" in engine.name
    assert "@main" in engine.name
    assert TransformersEngine.from_pretrained(folder, torch_dtype=torch.float16).name != engine.name
