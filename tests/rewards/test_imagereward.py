"""ImageReward against the published forward pass written down once more."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers import BertTokenizer

from fk_reward.rewards import ImageReward, load_reward, reward_card
from tests.tiny.imagereward import IMAGE_SIZE, random_state_dict
from tests.tiny.imagereward_reference import CLIP_MEAN, CLIP_STD, Reference, pil_pixels, to_pil

GOLDEN = {"straight": [-0.082476, -0.377635], "swapped": [-0.040738, -0.415009]}


def tokens_of(folder, texts):
    tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return tokenizer(texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")


def reference_scores(folder, pixels, texts, **options):
    reference, tokens = Reference(random_state_dict(), **options), tokens_of(folder, texts)
    rows = zip(pixels, tokens["input_ids"], tokens["attention_mask"], strict=True)
    return torch.tensor([reference(picture, ids, mask) for picture, ids, mask in rows])


def check_equals_reference(scores, folder, pixels, texts, *, tolerance=1e-4, **options):
    assert_close(scores, reference_scores(folder, pixels, texts, **options), rtol=0, atol=tolerance)


def test_equals_the_published_forward_pass(imagereward, imagereward_folder, smooth, texts):
    scores = imagereward(smooth, texts)
    assert scores.std() > 0.1  # the tolerance means something
    check_equals_reference(scores, imagereward_folder, imagereward.preprocessing(smooth), texts)


def test_equals_it_from_pil_pictures(imagereward, imagereward_folder, smooth, texts):
    pictures = [to_pil(image) for image in smooth]
    pixels = torch.stack([pil_pixels(picture, IMAGE_SIZE) for picture in pictures])
    pixels = (pixels - CLIP_MEAN) / CLIP_STD
    check_equals_reference(imagereward(pictures, texts), imagereward_folder, pixels, texts)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, images, texts: reward(images, texts[1:] + texts[:1]),
        lambda reward, images, texts: reward(images.flip(0), texts),
        lambda reward, images, texts: reward(images.flip(1), texts),
        lambda reward, images, texts: reward(images, [text + " green" for text in texts]),
    ],
    ids=["swapped prompts", "swapped images", "swapped channels", "other words"],
)
def test_a_wrong_score_is_noticed(saboteur, imagereward, imagereward_folder, smooth, texts):
    with pytest.raises(AssertionError):
        scores = saboteur(imagereward, smooth, texts)
        check_equals_reference(scores, imagereward_folder, imagereward.preprocessing(smooth), texts)


@pytest.mark.parametrize(
    "options",
    [{"head_size": 32}, {"eps": 1e-2}, {"activation": functional.relu}, {"standardize": False}],
    ids=["heads", "layer norm", "activations", "not standardised"],
)
def test_another_forward_pass_is_noticed(options, imagereward, imagereward_folder, smooth, texts):
    pixels = imagereward.preprocessing(smooth)
    with pytest.raises(AssertionError):
        check_equals_reference(imagereward(smooth, texts), imagereward_folder, pixels, texts, **options)


def test_golden_scores(imagereward, pictures, prompts):
    straight, swapped = imagereward(pictures, prompts), imagereward(pictures, prompts[::-1])
    assert_close(straight, torch.tensor(GOLDEN["straight"]), rtol=0, atol=1e-4)
    assert_close(swapped, torch.tensor(GOLDEN["swapped"]), rtol=0, atol=1e-4)
    assert ((straight - swapped).abs() > 1e-3).all()


def test_the_batch_is_one_pass(imagereward, smooth, texts, monkeypatch):
    batches = []
    for tower in (imagereward.model.vision, imagereward.model.text):
        forward = tower.forward
        monkeypatch.setattr(
            tower, "forward", lambda forward=forward, **inputs: batches.append(len(inputs)) or forward(**inputs)
        )
    imagereward(smooth, texts)
    assert len(batches) == 2


def test_padding_changes_nothing(imagereward, imagereward_folder, smooth, texts):
    """The length of the padding is the official one, but any other would give the same scores."""
    tokens = imagereward.prompts.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert tokens["input_ids"].shape[1] < 35
    with torch.no_grad():
        raw = imagereward.model(imagereward.preprocessing(smooth), **tokens)
    assert_close((raw - 0.16717362830052426) / 1.0333394966054072, imagereward(smooth, texts), rtol=0, atol=1e-5)


def test_long_prompts_are_cut_with_one_warning(imagereward, smooth, caplog):
    prompt = "red " * 40  # 40 tokens and the two special ones
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        first = imagereward(smooth, [prompt, "red", prompt, "red"])
        imagereward(smooth, prompt)
    assert [record.getMessage() for record in caplog.records] == [
        f"imagereward reads 35 tokens; 7 were cut from {prompt!r}."
    ]
    assert_close(first[0], imagereward(smooth, "red " * 33)[0])
    assert len(caplog.records) == 1  # 33 words and two special tokens fit


def test_pictures_get_a_gradient_and_weights_none(imagereward, smooth):
    assert not imagereward(smooth, "red").requires_grad
    assert not imagereward.model.training
    image, direction = smooth[:1].clone().requires_grad_(), smooth[1:2] - 0.5
    (gradient,) = torch.autograd.grad(imagereward(image, "a red circle").sum(), image)
    with torch.no_grad():
        up, down = (imagereward(image + step * direction, "a red circle") for step in (1e-3, -1e-3))
    assert_close((gradient * direction).sum(), (up - down)[0] / 2e-3, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights(dtype, imagereward, imagereward_folder, smooth, texts):
    folder = imagereward_folder
    half = load_reward("imagereward", weights=folder, tokenizer=folder / "tokenizer", torch_dtype=dtype)
    assert {weight.dtype for weight in half.model.vision.parameters()} == {dtype}
    assert {weight.dtype for weight in half.model.mlp.parameters()} == {torch.float32}
    scores = half(smooth, texts)
    assert scores.dtype == torch.float32
    assert_close(scores, imagereward(smooth, texts), rtol=0, atol=0.15)


def test_the_card_says_what_was_loaded(imagereward, imagereward_folder):
    assert imagereward.card.weights == str(imagereward_folder / "ImageReward.pt")
    assert imagereward.card.licence == "that of the weights"
    card = reward_card("imagereward")
    assert (card.weights, card.licence, card.max_prompt_tokens) == ("zai-org/ImageReward", "Apache-2.0", 35)


def test_no_reload_between_calls(imagereward, smooth, texts, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("files were read again")

    expected = imagereward(smooth, texts)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(BertTokenizer, "from_pretrained", refuse)
    assert_close(imagereward(smooth, texts), expected, rtol=0, atol=0)


def test_too_many_tokens_raise(imagereward):
    config = type(imagereward.config)(max_tokens=49)
    with pytest.raises(ValueError, match="max_tokens is 49, but the text encoder has 48 positions"):
        ImageReward(imagereward.model, imagereward.prompts.tokenizer, config=config)
