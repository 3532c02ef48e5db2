"""Image classifiers against transformers' own processor and model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fk_reward.rewards import load_reward
from fk_reward.rewards.image_classifier import chosen_labels
from tests.tiny.vision_models import write_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (48, 70, 3), dtype=np.uint8)) for _ in range(3)]


def probabilities(folder, images):
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    pixels = ViTImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        return ViTForImageClassification.from_pretrained(folder)(**pixels).logits.softmax(dim=-1)


def test_equals_the_pipeline_of_transformers(folder, images):
    expected = probabilities(folder, images)
    assert expected.std() > 0.01, "the labels can be told apart"
    for label, column in (("normal", 0), ("NSFW", 1), (2, 2)):
        scores = load_reward("image-classifier", model=folder, label=label)(images, "")
        assert_close(scores, expected[:, column], rtol=0, atol=1e-5)


def test_several_labels_and_not(folder, images):
    expected = 1 - probabilities(folder, images)[:, 1]
    for label in ("not nsfw", ["normal", "drawing"]):
        assert_close(
            load_reward("image-classifier", model=folder, label=label)(images, ""), expected, rtol=0, atol=1e-5
        )


def test_log_odds(folder, images):
    reward = load_reward("image-classifier", model=folder, label="not nsfw", scale="log-odds")
    share = 1 - probabilities(folder, images)[:, 1]
    assert_close(reward(images, ""), torch.logit(share), rtol=0, atol=1e-4)
    assert reward.card.typical_range[0] < 0


def test_a_wrong_label_would_be_noticed(folder, images):
    scores = load_reward("image-classifier", model=folder, label="drawing")(images, "")
    with pytest.raises(AssertionError):
        assert_close(scores, probabilities(folder, images)[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("label", ["cat", 7, "not cat", ["normal", "not normal"], []])
def test_labels_that_make_no_sense_raise(label):
    with pytest.raises(ValueError, match="normal"):
        chosen_labels({0: "normal", 1: "nsfw"}, label)


def test_another_model_needs_a_label(folder):
    with pytest.raises(ValueError, match="Name the label"):
        load_reward("image-classifier", model=folder)


def test_an_unknown_scale_raises(folder):
    with pytest.raises(ValueError, match="log-odds"):
        load_reward("image-classifier", model=folder, label="normal", scale="logit")


def test_a_checkpoint_without_a_head_raises(tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="ForImageClassification"):
        load_reward("image-classifier", model=tmp_path, label="normal")


def test_an_unusual_processor_gets_pil_images_and_has_no_gradient(folder, images, monkeypatch):
    from fk_reward.rewards import image_classifier

    plain = load_reward("image-classifier", model=folder, label="normal")
    monkeypatch.setattr(image_classifier, "_PLAIN", ())
    by_processor = load_reward("image-classifier", model=folder, label="normal")
    assert plain.card.differentiable
    assert not by_processor.card.differentiable
    assert_close(by_processor(images, ""), plain(images, ""), rtol=0, atol=1e-5)


def test_the_default_is_a_guard():
    from fk_reward.rewards import reward_card

    assert reward_card("image-classifier").weights == "Falconsai/nsfw_image_detection"
