"""Answer models against the model's own generation, and what a batch, a template or a wrong padding does to them."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.testing import assert_close
from transformers import LlavaImageProcessorPil

from fk_reward.rewards.answer_model import AnswerModel, load_answer_model
from fk_reward.rewards.inputs import to_pil

QUESTIONS = ["Is it red?", "Does this figure show two dogs and {a} cat? Please answer yes or no.", "é?"]


@torch.no_grad()
def generated_logits(model: AnswerModel, image: Image.Image, question: str) -> Tensor:
    """(1, V), what the model's own generation sees at its first step, from the processor's own pixel values."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = question
    if model.processor.chat_template is not None:
        turns = [{"role": "user", "content": content}]
        text = model.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    inputs = model.processor(images=[image], text=[text], return_tensors="pt")
    result = model.model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return result.logits[0]


def check_against_generation(model: AnswerModel, images: Tensor) -> None:
    """A batch of questions of different lengths; what is left is the 8-bit rounding of the processor's resizing."""
    logits = model(images, QUESTIONS)
    expected = torch.cat([generated_logits(model, *pair) for pair in zip(to_pil(images), QUESTIONS, strict=True)])
    assert_close(logits.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-4)


def without_resizing(model: AnswerModel, images: Tensor) -> Tensor:
    """Pictures of the size at which the tensor path and PIL do the very same thing."""
    return images[..., :32, :32]


def test_first_token_of_generation(model: AnswerModel, images: Tensor) -> None:
    check_against_generation(model, without_resizing(model, images))


class PaddedOnTheRight(AnswerModel):
    """Reads the last position of rows that end in padding."""

    def __init__(self, model: AnswerModel) -> None:
        super().__init__(model.model, model.processor)
        self.processor.tokenizer.padding_side = "right"


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"], indirect=True)
def test_padding_on_the_wrong_side_is_noticed(model: AnswerModel, images: Tensor) -> None:
    try:
        with pytest.raises(AssertionError):
            check_against_generation(PaddedOnTheRight(model), without_resizing(model, images))
    finally:
        model.processor.tokenizer.padding_side = "left"


def test_a_row_does_not_depend_on_its_batch(model: AnswerModel, images: Tensor) -> None:
    together = model(images, QUESTIONS)
    alone = torch.cat([model(images[i : i + 1], QUESTIONS[i : i + 1]) for i in range(3)])
    assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"], indirect=True)
def test_rows_of_one_length_go_without_a_mask(model: AnswerModel, images: Tensor, monkeypatch) -> None:
    seen = []
    read = model._last_logits
    monkeypatch.setattr(
        model, "_last_logits", lambda inputs, ids, **more: seen.append(dict(inputs)) or read(inputs, ids, **more)
    )
    alike, _ = model(images, QUESTIONS[:1] * len(images)), model(images, QUESTIONS)
    assert ["attention_mask" in inputs for inputs in seen] == [False, True]
    masked = {**seen[0], "attention_mask": torch.ones_like(seen[0]["input_ids"])}
    assert torch.equal(alike, model.next_logits(masked))


def test_pictures_and_questions_change_the_logits(model: AnswerModel, images: Tensor) -> None:
    logits = model(images[[0, 1, 0]], [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]]).softmax(-1)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[0] - logits[2]).abs().max() > 1e-3


def test_pixel_values_agree_with_the_processor(model: AnswerModel, images: Tensor) -> None:
    texts = [model._text(question, None, "") for question in QUESTIONS]
    pictures = [[picture] for picture in to_pil(images)]
    processor = model.processor
    if model.model.config.model_type == "llava":  # padded as its authors do, not cut as its processor says
        processor = copy.copy(processor)
        processor.image_processor = LlavaImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_pad=True
        )
    expected = processor(images=pictures, text=texts, padding=True, return_tensors="pt")["pixel_values"]
    exact = model._inputs((images * 255).round().to(torch.uint8), texts, QUESTIONS)["pixel_values"]
    assert_close(exact, expected, rtol=0, atol=2e-6)
    got = model._inputs(images, texts, QUESTIONS)["pixel_values"]
    std = min(model.processor.image_processor.image_std)
    assert_close(got, expected, rtol=0, atol=2 / 255 / std)


def test_gradients_reach_the_images_where_promised(model: AnswerModel, family: str, images: Tensor) -> None:
    assert model.differentiable == (family != "llava_next")
    images = images.clone().requires_grad_()
    logits = model(images, QUESTIONS)
    assert logits.requires_grad == model.differentiable
    if model.differentiable:
        logits[0].softmax(-1)[model.answer_tokens(["Yes"])].sum().backward()
        assert images.grad[0].abs().max() > 0
        assert images.grad[1:].abs().max() == 0


def test_answers_are_spelt_as_the_template_ends(model: AnswerModel, family: str) -> None:
    tokens = model.processor.tokenizer.convert_ids_to_tokens(model.answer_tokens(["Yes", "No"]))
    assert tokens == (["Yes", "No"] if family == "qwen3_vl" else ["▁Yes", "▁No"])


def test_answers_follow_the_opening(model: AnswerModel, family: str, images: Tensor) -> None:
    tokens = model.answer_tokens(["good"], opening="The quality of the image is")
    assert model.processor.tokenizer.convert_ids_to_tokens(tokens) == ["Ġgood" if family == "qwen3_vl" else "▁good"]
    plain, opened = (model(images, QUESTIONS, opening=opening) for opening in ("", "The quality of the image is"))
    assert (plain - opened).abs().amax(dim=1).min() > 1e-2


def test_an_answer_of_several_tokens_raises(model: AnswerModel) -> None:
    with pytest.raises(ValueError, match="'Certainly' must be exactly one token"):
        model.answer_tokens(["Certainly"])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"], indirect=True)
def test_something_between_question_and_answer_raises(model: AnswerModel) -> None:
    tokenizer = model.processor.tokenizer
    before, end = tokenizer._tokenizer.post_processor, tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    try:
        with pytest.raises(ValueError, match=f"ends the text.*{re.escape(end)}"):
            model.answer_tokens(["Yes"])
    finally:
        tokenizer._tokenizer.post_processor = before


def test_the_system_message_is_read(llava: AnswerModel, images: Tensor) -> None:
    assert llava._text("Q?", "Be kind.", "") == "Be kind. USER: <image>\nQ? ASSISTANT:"
    plain, kind = (llava(images, QUESTIONS, system=system) for system in (None, "Be kind."))
    assert (plain - kind).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["blip2_t5"], indirect=True)
def test_a_system_message_needs_a_template(model: AnswerModel, images: Tensor) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        model(images, QUESTIONS, system="Be kind.")


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"], indirect=True)
def test_an_image_token_in_a_prompt_raises(model: AnswerModel, images: Tensor) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        model(images[:1], [f"a {model.processor.image_token} b"])


def test_the_model_is_shared_and_let_go(folders: dict, llava: AnswerModel) -> None:
    assert load_answer_model(folders["llava"], torch_dtype=torch.float32) is llava
    other = load_answer_model(folders["llava"], torch_dtype=torch.float64)
    assert other is not llava
    assert load_answer_model(folders["llava"], torch_dtype=torch.float64) is other


@pytest.mark.parametrize("model_type", ["mplug_owl2", "clip"])
def test_an_architecture_that_transformers_lacks_raises(tmp_path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}", "auto_map": {{"AutoConfig": "x.Y"}}}}')
    with pytest.raises(ValueError, match=rf"'{model_type}'.*never run.*Qwen3-VL"):
        load_answer_model(tmp_path)


def test_code_that_comes_with_a_known_architecture_is_left_alone(folders: dict, tmp_path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(folders["llava"], folder)
    for name, key in (("config", "AutoModelForImageTextToText"), ("tokenizer_config", "AutoTokenizer")):
        settings = json.loads((folder / f"{name}.json").read_text())
        settings["auto_map"] = {"AutoConfig": "evil.Config", key: "evil.Code"}
        (folder / f"{name}.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert load_answer_model(folder).model.__class__.__module__.startswith("transformers.")


def test_missing_weights_raise(folders: dict, tmp_path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(folders["llava"], folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    removed = next(name for name in weights if "o_proj" in name)
    save_file({k: v for k, v in weights.items() if k != removed}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights.*o_proj"):
        load_answer_model(folder)
