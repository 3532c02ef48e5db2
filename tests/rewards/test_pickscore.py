"""PickScore against the snippet of its authors, on a tiny CLIP."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    """The tiny CLIP with a temperature of its own; the processor stays in the other folder, as on the hub."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("pickscore")
    model = CLIPModel.from_pretrained(tiny_clip)
    model.logit_scale.data.fill_(math.log(90.5))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder, tiny_clip):
    return load_reward("pickscore", model=folder, processor=tiny_clip)


def check_equals_the_snippet(scores, folder, processor, pictures, prompts):
    """exp(logit_scale) times the product of embeddings divided by their norms."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(processor)(pictures, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(processor)(
        prompts, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        image, text = model.get_image_features(**pixels).pooler_output, model.get_text_features(**tokens).pooler_output
        image, text = (x / torch.norm(x, dim=-1, keepdim=True) for x in (image, text))
        expected = (model.logit_scale.exp() * (text @ image.T)).diagonal()
    assert_close(scores, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def sharp(pictures):
    """The pictures in the size of the tower, so that no resizing rounds."""
    return [picture.crop((16, 16, 48, 48)) for picture in pictures]


def test_equals_the_snippet(reward, folder, tiny_clip, sharp, prompts):
    check_equals_the_snippet(reward(sharp, prompts), folder, tiny_clip, sharp, prompts)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, pictures, prompts: reward(pictures, prompts[::-1]),
        lambda reward, pictures, prompts: reward(pictures[::-1], prompts),
        lambda reward, pictures, prompts: reward(pictures, prompts) / reward.scale * 100,
        lambda reward, pictures, prompts: reward([np.array(picture)[..., ::-1] for picture in pictures], prompts),
    ],
    ids=["prompts", "pictures", "scale", "channels"],
)
def test_a_wrong_score_is_noticed(saboteur, reward, folder, tiny_clip, sharp, prompts):
    with pytest.raises(AssertionError, match="not close"):
        check_equals_the_snippet(saboteur(reward, sharp, prompts), folder, tiny_clip, sharp, prompts)


def test_golden_scores(reward, pictures, prompts):
    assert_close(reward(pictures, prompts), torch.tensor(GOLDEN), rtol=0, atol=2e-3)
    assert_close(reward(pictures, prompts[::-1]), torch.tensor(GOLDEN_SWAPPED), rtol=0, atol=2e-3)


GOLDEN, GOLDEN_SWAPPED = [-31.630735, -42.888195], [-42.222603, -32.399601]


def test_the_scale_is_that_of_the_stored_weights(folder, tiny_clip):
    reward = load_reward("pickscore", model=folder, processor=tiny_clip, torch_dtype=torch.bfloat16)
    assert reward.model.dtype == torch.bfloat16
    assert reward.scale == pytest.approx(90.5)  # the nearest logit_scale of bfloat16 would give 89.7


def test_the_card_has_the_unit_of_the_score(reward, folder):
    assert reward_card("pickscore").typical_range == pytest.approx((16, 26))
    assert reward.card.typical_range == pytest.approx((0.16 * 90.5, 0.26 * 90.5))
    assert reward.card.weights == str(folder)
    assert reward_card("pickscore").weights == "yuvalkirstain/PickScore_v1"


def test_weights_are_read_once(reward, pictures, prompts, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("weights were read again")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)
    monkeypatch.setattr("safetensors.safe_open", fail)
    assert_close(reward(pictures, prompts), reward(pictures, prompts), rtol=0, atol=0)
