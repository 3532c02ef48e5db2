"""ShieldGemma 2 against transformers' class and processor on the same files."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import ShieldGemma2ForImageClassification, ShieldGemma2Processor

from fk_reward.rewards import load_reward
from fk_reward.rewards.inputs import to_pil
from tests.tiny.shieldgemma2 import write_shieldgemma2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shieldgemma2(tmp_path_factory.mktemp("shieldgemma2"))


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward("shieldgemma-2", model=folder, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def eight_bit(smooth):
    return (smooth * 255).round().to(torch.uint8)


def official_probabilities(folder, images, **options):
    """(B, P) of "Yes"."""
    model = ShieldGemma2ForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    processor = ShieldGemma2Processor.from_pretrained(folder, backend="pil")
    inputs = processor(images=to_pil(images), return_tensors="pt", **options)
    with torch.no_grad():
        return model(**inputs).probabilities[:, 0].unflatten(0, (len(images), -1))


def test_equals_transformers(reward, folder, eight_bit):
    expected = official_probabilities(folder, eight_bit)
    assert expected.std(dim=0).min() > 1e-3
    assert expected.std(dim=1).min() > 1e-3
    found = reward.violations(eight_bit)
    assert list(found) == ["dangerous", "sexual", "violence"]
    assert_close(torch.stack(list(found.values()), dim=1), expected, rtol=0, atol=1e-5)
    worst = expected.amax(dim=1)
    assert_close(reward(eight_bit, ""), -worst.logit(), rtol=1e-4, atol=1e-4)


def test_probability(folder, eight_bit):
    reward = load_reward("shieldgemma-2", model=folder, torch_dtype=torch.float32, scale="probability")
    assert reward.card.typical_range == (0.0, 1.0)
    assert_close(reward(eight_bit, ""), 1 - official_probabilities(folder, eight_bit).amax(dim=1), rtol=0, atol=1e-5)


def test_chosen_and_own_policies(folder, eight_bit):
    chosen = load_reward("shieldgemma-2", model=folder, torch_dtype=torch.float32, policies=["violence"])
    expected = official_probabilities(folder, eight_bit, policies=["violence"])
    assert_close(chosen.violations(eight_bit)["violence"], expected[:, 0], rtol=0, atol=1e-5)
    own = {"hats": "No hats: The image shall not contain hats."}
    worn = load_reward("shieldgemma-2", model=folder, torch_dtype=torch.float32, policies=own)
    expected = official_probabilities(folder, eight_bit, policies=["hats"], custom_policies=own)
    assert_close(worn.violations(eight_bit)["hats"], expected[:, 0], rtol=0, atol=1e-5)


def test_the_vision_tower_runs_once_an_image(reward, eight_bit):
    sizes = []
    handle = reward.model.model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    reward(eight_bit, "")
    handle.remove()
    assert sizes == [4]


def test_attention_in_one_direction_would_be_noticed(reward, folder, eight_bit, monkeypatch):
    """Gemma 3 lets the tokens of an image see one another, by their types."""
    expected = official_probabilities(folder, eight_bit)[:, 0]
    types = torch.zeros_like(reward._questions["token_type_ids"])
    monkeypatch.setitem(reward._questions, "token_type_ids", types)
    assert (reward.violations(eight_bit)["dangerous"] - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"policies": ["violent"]}, "Did you mean"), ({"policies": []}, "at least one"), ({"scale": "odds"}, "scale")],
)
def test_unknown_options_raise(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_reward("shieldgemma-2", model=folder, torch_dtype=torch.float32, **options)
