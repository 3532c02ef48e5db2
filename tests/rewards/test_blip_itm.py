"""Image-text matching against transformers' own model and processor."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.testing import assert_close
from transformers import BertTokenizer, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from fk_reward.rewards import BlipITM, load_reward, reward_card
from fk_reward.rewards.blip_itm import match_scores
from tests.tiny.imagereward_reference import to_pil

GOLDEN = {"straight": [0.938987, 0.588241], "swapped": [0.941375, 0.586337]}


@pytest.fixture(scope="module")
def reward(itm_folder):
    return load_reward("blip-itm", model=itm_folder)


def official_logits(folder, pixels, texts, **settings):
    """`itm_score` of transformers, one picture at a time and without padding: (B, 2)."""
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            model(pixel_values=picture[None], **tokenizer(text, return_tensors="pt", **settings)).itm_score
            for picture, text in zip(pixels, texts, strict=True)
        ]
    return torch.cat(rows)


def check_equals_transformers(scores, folder, pixels, texts, *, tolerance=1e-4):
    logits = official_logits(folder, pixels, texts, return_token_type_ids=False)
    assert_close(scores, logits.softmax(dim=1)[:, 1], rtol=0, atol=tolerance)


def test_equals_transformers(reward, itm_folder, smooth, texts):
    scores = reward(smooth, texts)
    assert scores.std() > 0.05  # the tolerance means something
    check_equals_transformers(scores, itm_folder, reward.preprocessing(smooth), texts)


def test_equals_transformers_from_pil_pictures(reward, itm_folder, smooth, texts):
    pictures = [to_pil(image) for image in smooth]
    pixels = BlipImageProcessorPil.from_pretrained(itm_folder)(pictures, return_tensors="pt")["pixel_values"]
    std = torch.tensor(reward.preprocessing.std)[:, None, None]
    assert ((pixels - reward.preprocessing(smooth)) * std).abs().max() < 2 / 255
    check_equals_transformers(reward(pictures, texts), itm_folder, pixels, texts)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, images, texts: reward(images, texts[1:] + texts[:1]),
        lambda reward, images, texts: reward(images.flip(0), texts),
        lambda reward, images, texts: reward(images.flip(1), texts),
        lambda reward, images, texts: 1 - reward(images, texts),
    ],
    ids=["swapped prompts", "swapped images", "swapped channels", "swapped classes"],
)
def test_a_wrong_score_is_noticed(saboteur, reward, itm_folder, smooth, texts):
    scores = saboteur(reward, smooth, texts)
    with pytest.raises(AssertionError):
        check_equals_transformers(scores, itm_folder, reward.preprocessing(smooth), texts)


def test_golden_scores(reward, pictures, prompts):
    straight, swapped = reward(pictures, prompts), reward(pictures, prompts[::-1])
    assert_close(straight, torch.tensor(GOLDEN["straight"]), rtol=0, atol=1e-4)
    assert_close(swapped, torch.tensor(GOLDEN["swapped"]), rtol=0, atol=1e-4)
    assert ((straight - swapped).abs() > 1e-3).all()


def test_the_logit_is_the_log_odds_of_the_probability(reward, itm_folder, smooth, texts):
    logit = load_reward("blip-itm", model=itm_folder, unit="logit")
    assert_close(logit(smooth, texts).sigmoid(), reward(smooth, texts))
    logits = official_logits(itm_folder, reward.preprocessing(smooth), texts, return_token_type_ids=False)
    assert_close(logit(smooth, texts), logits[:, 1] - logits[:, 0], rtol=0, atol=1e-4)
    assert logit.card.typical_range == (float("-inf"), float("inf"))
    assert logit.card.summary.startswith("log-odds")


def test_the_probability_of_certain_matches_is_flat_and_the_logit_is_not():
    logits = torch.tensor([[0.0, 20.0], [0.0, 25.0]])
    assert match_scores(logits).diff() == 0
    assert match_scores(logits, unit="logit").diff() == 5


def test_long_prompts_are_cut_with_one_warning(itm_folder, smooth, caplog):
    reward = load_reward("blip-itm", model=itm_folder, max_tokens=10)
    prompt = "red " * 12
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        score = reward(smooth[:1], prompt)
        reward(smooth[:1], prompt)
    assert [record.getMessage() for record in caplog.records] == [
        f"blip-itm reads 10 tokens; 4 were cut from {prompt!r}."
    ]
    assert_close(score, reward(smooth[:1], "red " * 8))
    assert reward.card.max_prompt_tokens == 10


def test_the_card_says_what_was_loaded(reward, itm_folder):
    assert reward.card.weights == itm_folder
    assert reward_card("blip-itm").licence == "BSD-3-Clause"
    assert BlipITM.from_pretrained(itm_folder, batch_size=3).batch_size == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights(dtype, reward, itm_folder, smooth, texts):
    half = load_reward("blip-itm", model=itm_folder, torch_dtype=dtype)
    assert half.model.dtype == dtype
    assert_close(half(smooth, texts), reward(smooth, texts), rtol=0, atol=0.05)


def test_wrong_options_raise(itm_folder, tmp_path):
    with pytest.raises(ValueError, match=r"unit must be one of \('probability', 'logit'\), got 'cosine'"):
        load_reward("blip-itm", model=itm_folder, unit="cosine")
    with pytest.raises(ValueError, match="max_tokens is 41, but the text encoder has 40 positions"):
        load_reward("blip-itm", model=itm_folder, max_tokens=41)
    with pytest.raises(ValueError, match="max_tokens must leave room"):
        load_reward("blip-itm", model=itm_folder, max_tokens=2)
    with pytest.raises(OSError, match="preprocessor_config.json"):
        load_reward("blip-itm", model=str(tmp_path))
