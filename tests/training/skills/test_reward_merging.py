"""Dimensions of LLaVA-Reward merged into one: the formula for LoRA, means for head and projector, and it loads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig

from fk_reward.models import resolve_model
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint, load_own_checkpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.training.skills.reward_merging import merge_rewards

WIDTH = 6


def write(folder, dimension, *, rank=2, alpha=4, seed=0, projector=True, **settings):
    torch.manual_seed(seed)
    config = LlavaRewardConfig(
        **{"dimension": dimension, "backbone": "phi3_v", "base_model": "a/base", "cross_attention": False} | settings
    )
    lora = {"layers.0.q.lora_A.weight": torch.randn(rank, WIDTH), "layers.0.q.lora_B.weight": torch.randn(WIDTH, rank)}
    checkpoint = RewardCheckpoint(
        config,
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=["layers.0.q"]),
        lora,
        {"0.weight": torch.randn(WIDTH, 3)} if projector else {},
        {"value_head.weight": torch.randn(config.value_head_dim, WIDTH)},
    )
    return checkpoint.save(folder / dimension)


def delta(checkpoint):
    lora, config = checkpoint.lora, checkpoint.lora_config
    return config.lora_alpha / config.r * lora["layers.0.q.lora_B.weight"] @ lora["layers.0.q.lora_A.weight"]


def test_lora_is_summed_head_and_projector_are_averaged(tmp_path):
    folders = [write(tmp_path, "alignment", seed=1), write(tmp_path, "safety", rank=3, alpha=3, seed=2)]
    one, other = (load_own_checkpoint(folder) for folder in folders)
    merged = load_own_checkpoint(merge_rewards(folders, tmp_path / "overall", weights=[1.0, 3.0]))
    assert merged.config == dataclasses.replace(one.config, dimension="overall")
    torch.testing.assert_close(delta(merged), delta(one) + 3 * delta(other), rtol=1e-5, atol=1e-5)
    for part in ("head", "projector"):
        for name, value in getattr(merged, part).items():
            expected = (getattr(one, part)[name] + 3 * getattr(other, part)[name]) / 4
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": "b/base"}, "base_model='b/base'"),
        ({"objective": "binary"}, "objective='binary'"),
        ({"temperature": 0.2}, "temperature=0.2"),
        ({"projector": False}, "Only some .* a projector"),
    ],
)
def test_what_does_not_go_together(tmp_path, change, message):
    folders = [write(tmp_path, "alignment"), write(tmp_path, "safety", **change)]
    with pytest.raises(ValueError, match=message):
        merge_rewards(folders, tmp_path / "overall")


def test_weights_must_have_a_positive_sum(tmp_path):
    folders = [write(tmp_path, "alignment"), write(tmp_path, "safety")]
    with pytest.raises(ValueError, match="positive sum"):
        merge_rewards(folders, tmp_path / "overall", weights=[1.0, -1.0])


def test_one_embedded_reward_merged_with_itself_is_itself(tmp_path):
    folder = resolve_model("shapes-llava-reward-alignment")
    merged = merge_rewards([folder, folder], tmp_path / "same", dimension="alignment")
    images = torch.rand(2, 3, 64, 64)
    prompts = ["a photo of a red circle", "a photo of two stars"]
    expected = load_reward("shapes-llava-reward-alignment")(images, prompts)
    backbone = resolve_model("shapes-mllm")
    found = load_reward("llava-reward", backbone=backbone, adapter=merged)(images, prompts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
