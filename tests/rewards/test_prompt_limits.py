"""Prompts that no model reads as they stand: control tokens, and more tokens than there are positions."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import BertTokenizer, T5Config

from fk_reward.rewards import BlipITM, CLIPScore, VQAScore, load_reward
from fk_reward.rewards.answer_model import load_answer_model
from fk_reward.rewards.prompt_limits import UNSTATED_POSITIONS, control_tokens, num_positions
from fk_reward.rewards.question_texts import question_text
from fk_reward.rewards.vlm_judge.engine import Sampling
from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
from tests.tiny import answer_models
from tests.tiny.blip_itm import write_blip_itm
from tests.tiny.llava_reward import WRITERS, write_tiny

IMAGE = "<image>"
LONG = "red star " * 10_000
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=WRITERS)
def llava_reward(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param).load()


@pytest.fixture(scope="module")
def shapes_mllm():
    return load_reward("shapes-llava-reward-alignment")


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "blip2_t5"])
def answer_model(request, tmp_path_factory):
    folder = getattr(answer_models, f"write_{request.param}")(tmp_path_factory.mktemp(request.param))
    return load_answer_model(folder, torch_dtype=torch.float32)


def test_a_long_prompt_is_refused_by_every_backbone(llava_reward, monkeypatch):
    monkeypatch.setattr(llava_reward.model.backbone.language_model.config, "max_position_embeddings", 512)
    llava_reward(IMAGES, "a red star")
    with pytest.raises(ValueError, match=r"take \d+ tokens, but the model has \d+ positions: shorten .{0,90}\.$"):
        llava_reward(IMAGES, ["a red star", LONG])


def test_the_last_position_is_used_and_no_more(shapes_mllm):
    backbone = shapes_mllm.model.backbone
    room = 512 - backbone.prepare([IMAGES[0]], [""]).input_ids.shape[1]
    words = [word for word in ("star", "red", "a") if len(backbone.tokenizer(f" {word}").input_ids) == 1]
    start = time.perf_counter()
    fitting = " ".join(words[:1] * room)
    assert backbone.prepare([IMAGES[0]], [fitting]).input_ids.shape[1] == 512
    shapes_mllm(IMAGES[:1], fitting)
    with pytest.raises(ValueError, match="take 513 tokens, but the model has 512 positions"):
        shapes_mllm(IMAGES[:1], f"{fitting} {words[0]}")
    with pytest.raises(ValueError, match="but the model has 512 positions"):
        shapes_mllm(IMAGES[:1], LONG)
    assert time.perf_counter() - start < 30


def test_control_tokens_are_refused_by_every_backbone(llava_reward):
    tokens = control_tokens(llava_reward.model.backbone.tokenizer)
    assert len(tokens) > 1
    for token in tokens:
        with pytest.raises(ValueError, match="must not contain .*, a control token of the model; got 'a "):
            llava_reward(IMAGES, ["a star", f"a {token} star"])


def test_the_image_tag_of_phi_is_refused(shapes_mllm):
    with pytest.raises(ValueError, match=r"must not contain '<\|image_1\|>'"):
        shapes_mllm(IMAGES, "a <|image_1|> star")


def test_answer_models_refuse_control_tokens_and_long_prompts(answer_model):
    reward = VQAScore(answer_model)
    reward(IMAGES, "a star")
    for token in control_tokens(answer_model.processor.tokenizer, answer_model.processor.image_token):
        with pytest.raises(ValueError, match="must not contain .*, a control token of the model"):
            reward(IMAGES, f"a {token} star")
    with pytest.raises(ValueError, match=r"take \d+ tokens, but the model has \d+ positions"):
        reward(IMAGES, LONG)


def test_a_local_judge_leaves_room_for_the_answer(tmp_path_factory):
    model = load_answer_model(answer_models.write_qwen3_vl(tmp_path_factory.mktemp("judge")), torch_dtype=torch.float32)
    engine = TransformersEngine(model, name="tiny")
    picture = [Image.new("RGB", (32, 32))]

    def ask(text, length):
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return engine.generate([picture], [turns], sampling=Sampling(max_new_tokens=length))

    assert len(ask("a star?", 2)) == 1
    positions = num_positions(model.model.config)
    with pytest.raises(ValueError, match=f"and the answer {positions}, but the model has {positions} positions"):
        ask("a star?", positions)
    with pytest.raises(ValueError, match=r"must not contain '<\|im_end\|>'"):
        ask("a <|im_end|> star?", 2)


@pytest.mark.parametrize("template", ["{{ x }}", None])
@pytest.mark.parametrize("question", ['Does it show "a <image> cat"?', "<image> <image> a cat?"])
def test_the_image_token_is_refused_with_and_without_template(template, question):
    processor = SimpleNamespace(chat_template=template, image_token=IMAGE, apply_chat_template=lambda *_, **__: "x")
    with pytest.raises(ValueError, match="must not contain '<image>'"):
        question_text(processor, question)


def test_a_question_without_template_may_begin_with_the_image():
    processor = SimpleNamespace(chat_template=None, image_token=IMAGE)
    assert question_text(processor, "<image> a cat?") == "<image> a cat?"


def test_models_without_positions_have_a_limit():
    assert num_positions(T5Config()) == UNSTATED_POSITIONS


def test_clip_reads_control_tokens_as_text():
    reward = load_reward("shapes-clipscore")
    end = reward.tokenizer.eos_token
    ids = reward.tokenizer([f"a {end} star"], split_special_tokens=True)["input_ids"][0]
    assert ids.count(reward.tokenizer.eos_token_id) == 1
    plain, ended, cut = reward(IMAGES[:1].repeat(3, 1, 1, 1), ["a star", f"a {end} star", "a"])
    assert abs(ended - cut) > 1e-4  # as a token it would end the prompt after "a"
    assert abs(ended - plain) > 1e-4


def test_blip_reads_control_tokens_as_text(tmp_path):
    reward = BlipITM.from_pretrained(write_blip_itm(tmp_path), unit="logit", max_tokens=8)
    ids = reward.prompts(["cat [SEP] cat"])["input_ids"][0].tolist()
    assert ids.count(reward.prompts.tokenizer.sep_token_id) == 1


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_text_encoders_cut_long_prompts_with_one_short_warning(kind, tiny_clip, tmp_path, caplog):
    reward = (
        CLIPScore.from_pretrained(tiny_clip) if kind == "clip" else BlipITM.from_pretrained(write_blip_itm(tmp_path))
    )
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        scores = reward(IMAGES, LONG)
        assert_close(reward(IMAGES, "red star " * 500), scores)
    assert reward.card.max_prompt_tokens is not None
    warnings = [record.getMessage() for record in caplog.records if "were cut from" in record.getMessage()]
    assert len(warnings) == 2 and all(len(text) < 400 for text in warnings)
    assert time.perf_counter() - start < 30


def test_bert_control_tokens():
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    assert set(control_tokens(tokenizer)) == set(words)
