"""The definition of Hessel et al. 2021 against its public code's arithmetic."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import CLIPScore, load_reward

PREFIX = "A photo depicts "


PROMPTS = ["a red circle", "blue square", "7", "two green stars", "r", "zzz"]


@pytest.fixture(scope="module")
def folders(tiny_clip, tmp_path_factory):
    """The tiny CLIP, whose cosines all are negative, and its opposite."""
    from transformers import CLIPModel

    folder = shutil.copytree(tiny_clip, tmp_path_factory.mktemp("opposite"), dirs_exist_ok=True)
    model = CLIPModel.from_pretrained(tiny_clip)
    model.text_projection.weight.data.neg_()
    model.save_pretrained(folder)
    return {"negative": tiny_clip, "positive": str(folder)}


@pytest.fixture(scope="module")
def reward(folders):
    return load_reward("clipscore", model=folders["positive"], hessel=True)


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def check_is_the_published_score(scores, folder, images):
    """2.5 max(cosine, 0) of pictures and prefixed prompts, with transformers' own forward pass."""
    from transformers import CLIPModel, CLIPTokenizer

    model, plain = CLIPModel.from_pretrained(folder), CLIPScore.from_pretrained(folder)
    tokens = CLIPTokenizer.from_pretrained(folder)(
        [PREFIX + prompt for prompt in PROMPTS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(pixel_values=plain.preprocessing(images), **tokens).logits_per_image
    assert_close(scores, 2.5 * (logits / model.logit_scale.exp()).diagonal().clamp(min=0), rtol=0, atol=1e-5)


def test_is_the_published_score(reward, folders, images):
    scores = reward(images, PROMPTS)
    assert scores.min() > 0
    check_is_the_published_score(scores, folders["positive"], images)


def test_negative_cosines_become_zero(folders, images):
    scores = CLIPScore.from_pretrained(folders["negative"], hessel=True)(images, PROMPTS)
    assert scores.tolist() == [0.0] * 6
    check_is_the_published_score(scores, folders["negative"], images)


@pytest.mark.parametrize(
    ("saboteur", "sign"),
    [
        (lambda plain, images: 2.5 * plain(images, [PREFIX + prompt for prompt in PROMPTS]), "negative"),
        (lambda plain, images: 2.5 * plain(images, PROMPTS), "positive"),
        (lambda plain, images: plain(images, [PREFIX + prompt for prompt in PROMPTS]), "positive"),
        (lambda plain, images: 2.5 * plain(images, [PREFIX + prompt for prompt in PROMPTS[::-1]]), "positive"),
    ],
    ids=["not clipped", "no prefix", "no weight", "prompts"],
)
def test_a_wrong_score_is_noticed(saboteur, sign, folders, images):
    plain = CLIPScore.from_pretrained(folders[sign])
    with pytest.raises(AssertionError, match="not close"):
        check_is_the_published_score(saboteur(plain, images), folders[sign], images)


def test_the_card_says_so(reward, tiny_clip):
    assert reward.card.typical_range == pytest.approx((0.25, 0.875))
    assert reward.card.spread == pytest.approx(0.05)
    assert reward.card.summary == "2.5 times the cosine of CLIP ViT-L/14 image and text embeddings, at least 0"
    other = CLIPScore.from_pretrained(tiny_clip, hessel=True, scale=100.0)
    assert other.card.typical_range == (0.0, 250.0)


def test_the_prefix_counts_among_the_tokens(reward, images, caplog):
    prefix_tokens = len(reward.tokenizer(PREFIX)["input_ids"]) - 2
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        reward(images[:1], "red " * (30 - prefix_tokens))
        assert not caplog.records
        reward(images[:1], "red " * (31 - prefix_tokens))
    assert "1 were cut from 'A photo depicts red" in caplog.records[0].getMessage()


def test_plain_cosine_is_the_default(tiny_clip, images):
    assert load_reward("clipscore", model=tiny_clip)(images, PROMPTS).min() < 0
