"""CycleReward: ImageReward's network, another head, no standardisation, longer prompts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.blip import fused_states
from tests.tiny.imagereward import write_cyclereward, write_imagereward


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_imagereward(tmp_path_factory.mktemp("cyclereward"))
    write_cyclereward(folder / "CycleReward-Combo.pth")
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward("cyclereward", weights=folder / "CycleReward-Combo.pth", tokenizer=folder / "tokenizer")


def official_scores(reward, folder, images, prompts):
    """The published head on BLIP's states, from the file's own tensors."""
    tensors = torch.load(folder / "CycleReward-Combo.pth", weights_only=True)
    tokens = reward.prompts(prompts)
    states = fused_states(reward.model.vision, reward.model.text, reward.preprocessing(images), dict(tokens))
    for index in (0, 2, 4, 6):
        layer = (tensors[f"mlp.layers.{index}.{kind}"] for kind in ("weight", "bias"))
        states = functional.gelu(functional.linear(states, *layer))
    return functional.linear(states, tensors["mlp.layers.8.weight"], tensors["mlp.layers.8.bias"])[:, 0]


def test_equals_the_published_head(reward, folder, smooth, texts):
    with torch.no_grad():
        expected = official_scores(reward, folder, smooth, texts)
    assert expected.std() > 1e-3
    assert_close(reward(smooth, texts), expected, rtol=0, atol=1e-5)


def test_imagerewards_standardisation_would_be_noticed(reward, folder, smooth, texts):
    scores = (reward(smooth, texts) - 0.16717362830052426) / 1.0333394966054072
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_close(scores, official_scores(reward, folder, smooth, texts), rtol=0, atol=1e-3)


def test_long_prompts_are_read_up_to_128_tokens(reward, smooth):
    long = " ".join(["red"] * 80)
    assert reward.card.max_prompt_tokens == reward_card("cyclereward").max_prompt_tokens == 128
    assert (reward(smooth, long) - reward(smooth, long + " blue circle")).abs().max() > 1e-5


def test_each_family_refuses_the_file_of_the_other(folder):
    with pytest.raises(ValueError, match="an ImageReward"):
        load_reward("cyclereward", weights=folder / "ImageReward.pt", tokenizer=folder / "tokenizer")
    with pytest.raises(ValueError, match="a CycleReward"):
        (folder / "CycleReward-Combo.pth").rename(folder / "cycle.pt")
        try:
            load_reward("imagereward", weights=folder / "cycle.pt", tokenizer=folder / "tokenizer")
        finally:
            (folder / "cycle.pt").rename(folder / "CycleReward-Combo.pth")


def test_the_file_must_be_given_and_be_there(tmp_path):
    with pytest.raises(ValueError, match="release"):
        load_reward("cyclereward")
    with pytest.raises(FileNotFoundError, match="CycleReward"):
        load_reward("cyclereward", weights=tmp_path / "none.pth")
