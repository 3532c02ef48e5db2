"""LLaVA-Rewards of random weights, and the sizes of the full ones against those of the published files."""

from __future__ import annotations

import pytest
import torch

from fk_reward.planning.full_size_rewards import DIMENSIONS, random_reward, weight_sizes
from fk_reward.rewards.llava_reward.backbones.base import BACKBONES, byte_tokenizer, random_backbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision import PHI3_VISION
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QWEN2_5_VL

PROMPT = "a red circle"


def noise(count, size, *, seed):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(BACKBONES))
def test_dimensions_differ_and_one_pass_gives_what_three_give(name):
    reward = random_reward(name, num_crops=2)
    images = noise(2, 100, seed=1)
    joint = reward.score_dimensions(images, PROMPT)
    assert tuple(joint) == DIMENSIONS
    for dimension in DIMENSIONS:
        torch.testing.assert_close(joint[dimension], reward.set_dimension(dimension)(images, PROMPT))
    scores = torch.stack(list(joint.values()))
    assert scores.unique().numel() == scores.numel(), "each image and each dimension has its own score"


def test_the_seed_decides_the_weights():
    images = noise(1, 64, seed=0)
    first, same, other = (random_reward("phi3_v", num_crops=1, seed=s)(images, PROMPT) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_random_state_and_the_dtype_are_put_back():
    state = torch.get_rng_state()
    random_reward("phi3_v", num_crops=1, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", list(BACKBONES))
def test_weights_have_the_dtype_and_the_size_that_was_announced(name):
    reward = random_reward(name, dtype=torch.bfloat16, num_crops=1)
    assert {p.dtype for p in reward.model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in reward.model.heads.parameters()} == {torch.float32}
    count, size = weight_sizes(name, full_size=False, dtype=torch.bfloat16)
    assert count == num_parameters(reward.model)
    assert size == sum(p.nbytes for p in reward.model.parameters())
    assert torch.isfinite(reward(noise(1, 64, seed=0), PROMPT)).all()


def head_and_last_clip_layer(vocab_size, width, clip_width=None):
    """Parameters that the published files have and the backbone does without."""
    if clip_width is None:
        return vocab_size * width
    attention, mlp, norms = 4 * clip_width * (clip_width + 1), clip_width * (8 * clip_width + 5), 4 * clip_width
    return vocab_size * width + attention + mlp + norms


PUBLISHED_BYTES = {  # `total_size` in model.safetensors.index.json on the hub, two bytes a parameter
    "phi3_v": (8_293_242_880, head_and_last_clip_layer(32064, 3072, 1024)),
    "qwen2_5_vl": (16_584_333_312, head_and_last_clip_layer(152064, 3584)),
}


def full_size_parameters(name):
    with torch.device("meta"):
        return num_parameters(random_backbone(name, full_size=True))


@pytest.mark.parametrize("name", list(PUBLISHED_BYTES))
def test_full_sizes_are_those_of_the_published_files(name):
    size, left_out = PUBLISHED_BYTES[name]
    assert full_size_parameters(name) == size // 2 - left_out


def test_other_sizes_than_the_published_are_noticed(monkeypatch):
    monkeypatch.setitem(PHI3_VISION.full_size, "intermediate_size", 8200)
    with pytest.raises(AssertionError):
        test_full_sizes_are_those_of_the_published_files("phi3_v")
    monkeypatch.setitem(QWEN2_5_VL.full_size["text_config"], "num_key_value_heads", 28)
    with pytest.raises(AssertionError):
        test_full_sizes_are_those_of_the_published_files("qwen2_5_vl")


def test_the_tokenizer_spells_any_text():
    tokenizer = byte_tokenizer()
    text = "ein Kätzchen, 猫 \n"
    assert len(tokenizer(text).input_ids) == len(text.encode())
    assert tokenizer.decode(tokenizer(text).input_ids) == text
