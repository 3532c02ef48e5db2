"""Inputs made without a picture against those of transformers' processors, and how often anything is processed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards.answer_inputs import PromptInputs
from fk_reward.rewards.answer_model import AnswerModel
from fk_reward.rewards.inputs import to_pil

QUESTIONS = ["Is it red?", "Does this figure show two dogs and {a} cat? Please answer yes or no.", "é?"]


def texts_of(model):
    return [model._text(question, None, "") for question in QUESTIONS]


def by_processor(model, images):
    nested = [[image] for image in to_pil(images)]
    inputs = dict(model.processor(images=nested, text=texts_of(model), padding=True, return_tensors="pt"))
    return {name: value for name, value in inputs.items() if name != "pixel_values"}


def check_inputs(model, inputs, images):
    expected = by_processor(model, images)
    assert set(inputs) - {"position_ids"} == set(expected)
    for name, value in expected.items():
        assert torch.equal(inputs[name], value), name


def reproduced(model):
    if model._prompts is None:
        pytest.skip("its processor makes the pixels")
    return model._prompts


@pytest.mark.parametrize("shape", [(40, 56), (32, 32), (90, 30)])
def test_inputs_are_those_of_the_processor(model: AnswerModel, shape):
    images = torch.rand(3, 3, *shape)
    check_inputs(model, reproduced(model)(texts_of(model), shape), images)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"], indirect=True)
def test_placeholders_are_written_out_as_ids(model: AnswerModel, images, monkeypatch):
    monkeypatch.setattr(PromptInputs, "_processed", None)
    check_inputs(model, model._prompts._make(texts_of(model), (40, 56), ()), images)


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
def test_positions_are_those_of_the_model(model: AnswerModel, images):
    inputs = model._prompts(texts_of(model), (40, 56))
    arguments = {name: value for name, value in inputs.items() if name != "position_ids"}
    expected, _ = model.model.model.get_rope_index(**arguments)
    assert torch.equal(inputs["position_ids"], expected)


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_row_says_the_positions_of_all_with_the_image_there(model: AnswerModel, monkeypatch, side):
    rope_index, asked = model.model.model.get_rope_index, []
    monkeypatch.setattr(model.processor.tokenizer, "padding_side", side)
    prompts = PromptInputs(
        model.processor, model._transform, rope_index=lambda **rows: asked.append(rows) or rope_index(**rows)
    )
    first, second, third = texts_of(model)
    prompts([first], (40, 56))  # compared with the model
    asked.clear()
    for size in [(40, 56), (90, 30)]:
        inputs = prompts([second, first, second, third, first], size)
        arguments = {name: value for name, value in inputs.items() if name != "position_ids"}
        assert torch.equal(inputs["position_ids"], rope_index(**arguments)[0])
    assert len(asked) == 1, "the second size"


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
def test_a_model_that_counts_otherwise_is_asked_about_every_batch(model: AnswerModel):
    def every_second(**rows):
        positions, deltas = model.model.model.get_rope_index(**rows)
        return positions * (1 + (rows["input_ids"] != 0)), deltas

    prompts = PromptInputs(model.processor, model._transform, rope_index=every_second)
    for texts in (texts_of(model)[:1], texts_of(model)):
        inputs = prompts(texts, (40, 56))
        arguments = {name: value for name, value in inputs.items() if name != "position_ids"}
        assert torch.equal(inputs["position_ids"], every_second(**arguments)[0])


def test_a_text_that_several_images_share_is_tokenised_once(model: AnswerModel, monkeypatch):
    prompts, given = reproduced(model), []
    first, second, _ = texts_of(model)
    tokenizer = type(model.processor.tokenizer)
    expected = prompts._make([first, second], (40, 56), ())
    own = tokenizer.__call__
    monkeypatch.setattr(tokenizer, "__call__", lambda self, text, **more: given.append(text) or own(self, text, **more))
    inputs = prompts._make([first, second, first], (40, 56), ())
    if prompts._expansions[40, 56] is not None:
        assert given == [[first, second]]
    assert torch.equal(inputs["input_ids"][:2], expected["input_ids"])
    assert torch.equal(inputs["input_ids"][2], inputs["input_ids"][0])


def test_one_placeholder_too_few_is_noticed(model: AnswerModel, images, monkeypatch):
    prompts = reproduced(model)
    expansion = prompts._expansion((40, 56))
    if expansion is None:
        pytest.skip("its processor writes the tokens")
    types = None if expansion.types is None else expansion.types[1:]
    shorter = dataclasses.replace(expansion, ids=expansion.ids[1:], types=types)
    monkeypatch.setitem(prompts._expansions, (42, 56), shorter)
    with pytest.raises((AssertionError, RuntimeError)):
        check_inputs(model, prompts._make(texts_of(model), (42, 56), ()), images)


def test_no_picture_is_processed(model: AnswerModel, images, monkeypatch):
    reproduced(model)
    expected = model(images, QUESTIONS)
    model._prompts._batches.clear()
    model._prompts._expansions.clear()

    def refuse(*_, **__):
        raise AssertionError("a picture was processed")

    monkeypatch.setattr(type(model.processor.image_processor), "__call__", refuse)
    assert_close(model(images, QUESTIONS), expected, rtol=0, atol=0)


def test_a_batch_is_tokenised_once(model: AnswerModel, images, monkeypatch):
    prompts = reproduced(model)
    first = model(images, QUESTIONS)
    monkeypatch.setattr(prompts, "_make", None)
    assert_close(model(images, QUESTIONS), first, rtol=0, atol=0)


def test_only_the_last_batches_are_kept(model: AnswerModel):
    prompts = reproduced(model)
    text = texts_of(model)[0]
    for width in range(33, 70):
        prompts([text], (32, width))
    assert len(prompts._batches) == 32


@pytest.mark.parametrize("family", ["llava", "blip2_t5", "instructblip"], indirect=True)
def test_a_transform_that_makes_another_shape_is_refused(model: AnswerModel):
    reproduced(model)
    with pytest.raises(ValueError, match="not reproduced"):
        PromptInputs(model.processor, lambda images: model._transform(images)[..., :-1])
