"""The aesthetic predictors against their own arithmetic on transformers' embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fk_reward.rewards import CLIPScore, load_reward
from fk_reward.rewards.aesthetic import AestheticScore, aesthetic_head
from tests.tiny.aesthetic import mlp_tensors, official_mlp, write_head

WIDTH = 16  # of the tiny CLIP's embeddings


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("aesthetic") / "sac+logos+ava1-l14-linearMSE.pth", mlp_tensors(WIDTH))


@pytest.fixture(scope="module")
def reward(weights, tiny_clip):
    return load_reward("aesthetic", weights=weights, model=tiny_clip)


@pytest.fixture(scope="module")
def sharp(pictures):
    """The pictures in the size of the tower, so that no resizing rounds."""
    return [picture.crop((16, 16, 48, 48)) for picture in pictures]


def embeddings(folder, pictures):
    from transformers import CLIPImageProcessorPil, CLIPModel

    pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder).get_image_features(**pixels).pooler_output


def check_equals_the_official_mlp(scores, folder, pictures):
    vectors = embeddings(folder, pictures).numpy()
    vectors = vectors / np.linalg.norm(vectors, 2, -1, keepdims=True)
    with torch.no_grad():
        expected = official_mlp(WIDTH)(torch.from_numpy(vectors))[:, 0]
    assert_close(scores, expected, rtol=0, atol=1e-4)


def test_equals_the_official_mlp(reward, tiny_clip, sharp):
    check_equals_the_official_mlp(reward(sharp, "any"), tiny_clip, sharp)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, pictures, folder: reward(pictures[::-1], ""),
        lambda reward, pictures, folder: reward.head(embeddings(folder, pictures))[:, 0],
        lambda reward, pictures, folder: AestheticScore(
            reward.model, with_relu(reward.head), preprocessing=reward.preprocessing
        )(pictures, ""),
    ],
    ids=["pictures", "not normalised", "with ReLU"],
)
def test_a_wrong_score_is_noticed(saboteur, reward, tiny_clip, sharp):
    with pytest.raises(AssertionError, match="not close"):
        check_equals_the_official_mlp(saboteur(reward, sharp, tiny_clip), tiny_clip, sharp)


def with_relu(head):
    return nn.Sequential(*(layer for linear in head[:-1] for layer in (linear, nn.ReLU())), head[-1])


def test_the_older_head_is_a_single_layer(tmp_path, tiny_clip, sharp):
    generator = torch.Generator().manual_seed(3)
    tensors = {"weight": torch.randn(1, WIDTH, generator=generator), "bias": torch.tensor([5.0])}
    weights = write_head(tmp_path / "sa_0_4_vit_l_14_linear.pth", tensors)
    vectors = torch.nn.functional.normalize(embeddings(tiny_clip, sharp), dim=-1)
    scores = load_reward("aesthetic", weights=weights, model=tiny_clip)(sharp, "any")
    assert_close(scores, vectors @ tensors["weight"][0] + 5, rtol=0, atol=1e-5)


def test_golden_scores_ignore_the_prompts(reward, pictures, prompts):
    assert_close(reward(pictures, prompts), torch.tensor(GOLDEN), rtol=0, atol=1e-4)
    assert_close(reward(pictures, prompts[::-1]), reward(pictures, prompts), rtol=0, atol=0)
    assert_close(reward(pictures[::-1], prompts), reward(pictures, prompts).flip(0), rtol=0, atol=1e-6)


GOLDEN = [-0.313724, -0.313141]


def test_the_head_stays_in_float32(weights, tiny_clip, reward, pictures):
    half = load_reward("aesthetic", weights=weights, model=tiny_clip, torch_dtype=torch.bfloat16)
    moved = load_reward("aesthetic", weights=weights, model=tiny_clip).to("cpu", torch.bfloat16)
    for each in (half, moved):
        assert (each.model.dtype, each.head[0].weight.dtype) == (torch.bfloat16, torch.float32)
        assert_close(each(pictures, ""), reward(pictures, ""), rtol=0, atol=0.05)
    assert_close(half(pictures, ""), moved(pictures, ""))


def test_the_text_tower_is_not_kept(reward):
    assert not any("text" in name for name, _ in reward.model.named_parameters())


def test_one_model_can_serve_a_clipscore_too(reward, weights, tiny_clip, pictures):
    clip = CLIPScore.from_pretrained(tiny_clip)
    shared = AestheticScore(clip.model, aesthetic_head(torch.load(weights)), preprocessing=clip.preprocessing)
    assert shared.model is clip.model
    assert_close(shared(pictures, ""), reward(pictures, ""))


def test_the_hub_is_asked_for_the_head(weights, tiny_clip, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or str(weights))
    reward = load_reward("aesthetic", model=tiny_clip)
    assert asked == [("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth")]
    assert reward.card.weights == f"trl-lib/ddpo-aesthetic-predictor on {tiny_clip}"


def test_the_head_of_another_clip_raises(tmp_path, tiny_clip):
    weights = write_head(tmp_path / "head.pth", mlp_tensors(768))
    with pytest.raises(ValueError, match="length 768, but this CLIP's have 16"):
        load_reward("aesthetic", weights=weights, model=tiny_clip)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {key.replace("layers.7", "layers.11"): tensor for key, tensor in t.items()}, "Heads with ReLU"),
        (lambda t: {key: tensor for key, tensor in t.items() if key != "layers.4.bias"}, "Expected the linear head"),
        (lambda t: t | {"layers.8.weight": torch.ones(1, 1)}, "Expected the linear head"),
        (lambda t: {"weight": torch.ones(1, 8)}, "Expected the linear head"),
        (lambda t: t | {"layers.6.weight": torch.ones(16, 63)}, "do not lead to one number"),
        (lambda t: t | {"layers.6.bias": torch.ones(3)}, "unfitting tensors"),
        (lambda t: {"weight": torch.ones(2, 8), "bias": torch.ones(2)}, "do not lead to one number"),
        (lambda t: {"weight": torch.ones(8), "bias": torch.ones(1)}, "unfitting tensors"),
    ],
    ids=["relu", "lacks", "more", "linear lacks", "chain", "bias", "two numbers", "vector"],
)
def test_other_heads_raise(change, message):
    with pytest.raises(ValueError, match=message):
        aesthetic_head(change(mlp_tensors(WIDTH)))


def test_building_a_head_leaves_the_random_state_alone():
    tensors = mlp_tensors(WIDTH)
    before = torch.get_rng_state()
    aesthetic_head(tensors)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_read_once(reward, pictures, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("weights were read again")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)
    assert_close(reward(pictures, ""), reward(pictures, ""), rtol=0, atol=0)
