"""Aesthetic Predictor v2.5 against its arithmetic on transformers' SigLIP, and its own package where installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.aesthetic_siglip import siglip_head
from tests.tiny.aesthetic import write_head
from tests.tiny.vision_models import siglip_head_tensors, write_siglip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("head") / "aesthetic_predictor_v2_5.pth", siglip_head_tensors())


@pytest.fixture(scope="module")
def reward(folder, weights):
    return load_reward("aesthetic-v2.5", weights=weights, model=folder)


def embeddings(folder, pictures):
    from transformers import SiglipImageProcessorPil, SiglipModel

    pixels = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return SiglipModel.from_pretrained(folder).get_image_features(**pixels).pooler_output


def marks(embedding):
    """The published layers, as a network of its own."""
    layers = nn.Sequential(*(nn.Linear(a, b) for a, b in ((24, 20), (20, 12), (12, 8), (8, 6), (6, 1))))
    tensors = list(siglip_head_tensors().values())
    with torch.no_grad():
        for layer, weight, bias in zip(layers, tensors[::2], tensors[1::2], strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layers(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]


def test_equals_the_arithmetic_on_transformers_embeddings(reward, folder, pictures):
    assert_close(reward(pictures, "any"), marks(embeddings(folder, pictures)), rtol=0, atol=1e-5)


def test_without_the_norm_it_would_differ(reward, folder, pictures):
    with torch.no_grad():
        unnormalised = reward.head(embeddings(folder, pictures))[:, 0]
    assert (unnormalised - reward(pictures, "")).abs().max() > 1e-2


def test_the_whole_image_is_seen(reward):
    images = torch.full((2, 3, 64, 192), 0.5)
    images[1, :, :, :40] = 0.0
    scores = reward(images, "")
    assert scores[0] != scores[1]


def test_the_head_must_be_given():
    with pytest.raises(ValueError, match="AGPL"):
        load_reward("aesthetic-v2.5")
    assert "AGPL" in reward_card("aesthetic-v2.5").licence


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("scoring_head.4.bias"),
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        lambda tensors: tensors.update({"scoring_head.8.weight": torch.zeros(2, 6)}),
        lambda tensors: tensors.update({"scoring_head.2.weight": torch.zeros(12, 19)}),
    ],
)
def test_another_head_raises(change):
    tensors = siglip_head_tensors()
    change(tensors)
    with pytest.raises(ValueError, match="head"):
        siglip_head(tensors)


def test_a_head_of_another_tower_raises(folder, tmp_path):
    weights = write_head(tmp_path / "head.pth", siglip_head_tensors(width=30))
    with pytest.raises(ValueError, match="embeddings of length 30"):
        load_reward("aesthetic-v2.5", weights=weights, model=folder)


def test_the_head_stays_in_float32(folder, weights):
    reward = load_reward("aesthetic-v2.5", weights=weights, model=folder, torch_dtype=torch.bfloat16)
    assert reward.head[0].weight.dtype == torch.float32
    assert reward.to(dtype=torch.float16).head[0].weight.dtype == torch.float32
