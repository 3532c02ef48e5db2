"""One backbone in memory, however many rewards and dimensions read it."""

from __future__ import annotations

import gc

import torch


def unique_parameters(*rewards):
    """Number of weights in memory: each storage counts once."""
    tensors = {p.data_ptr(): p.numel() for reward in rewards for p in reward.model.parameters()}
    return sum(tensors.values())


def own_parameters(reward, key):
    model = reward.model
    parts = [
        *model.projectors[key].parameters(),
        *model.heads[key].parameters(),
        *model.adapters.parameters_of(key).values(),
    ]
    return sum(p.numel() for p in parts)


def test_rewards_share_the_backbone(phi):
    first, second = phi.load("alignment"), phi.load("safety")
    backbone = sum(p.numel() for name, p in first.model.backbone.named_parameters() if ".lora_" not in name)
    owned = own_parameters(first, "alignment") + own_parameters(second, "safety")
    assert first.model is second.model
    assert unique_parameters(first, second) == backbone + owned
    assert owned < backbone


def test_the_same_adapter_is_loaded_once(phi):
    first = phi.load("alignment")
    before = unique_parameters(first)
    second = phi.load("alignment")
    assert unique_parameters(first, second) == before


def test_each_reward_keeps_its_dimension(phi, batch):
    first = phi.load("alignment")
    expected = first(*batch)
    phi.load("safety")(*batch)
    assert torch.equal(first(*batch), expected)


def test_another_dtype_or_option_is_not_shared(phi):
    first = phi.load()
    assert phi.load(num_crops=4).model is not first.model
    assert phi.load(torch_dtype=torch.bfloat16).model is not first.model
    assert phi.load(offload=True).model is not first.model


def test_nothing_is_kept_alive(phi):
    from fk_reward.rewards.llava_reward.loading import _MODELS

    reward = phi.load(num_crops=2)
    gc.collect()  # what other tests left
    count = len(_MODELS)
    del reward
    gc.collect()
    assert len(_MODELS) == count - 1


def test_a_checkpoint_saved_anew_is_read_anew(phi, batch, tmp_path):
    from fk_reward.rewards import load_reward

    def load():
        options = {"backbone": phi.backbone, "adapter": tmp_path / "own", "torch_dtype": torch.float32}
        return load_reward("llava-reward", **options)

    phi.load("alignment").save_pretrained(tmp_path / "own")
    first = load()(*batch)
    checkpoint = phi.load("alignment").model.checkpoint("alignment")
    checkpoint.head["value_head.weight"] *= 2
    checkpoint.save(tmp_path / "own")
    assert torch.allclose(load()(*batch), 2 * first)
