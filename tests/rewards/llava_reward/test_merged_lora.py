"""An adapter merged into the backbone's weights: the same scores, and the weights come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import load_reward

NAME = "shapes-llava-reward-alignment"


def weights_of(reward):
    return {name: weight.detach().clone() for name, weight in reward.model.backbone.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_scores_are_the_same_and_weights_come_back(tiny, dtype, tolerance, mixed):
    plain, merged = (tiny.load(torch_dtype=dtype, merge_lora=merge) for merge in (False, True))
    expected, got = plain(*mixed), merged(*mixed)
    assert_close(got, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
    changed = weights_of(merged)
    merged.model.adapters.unmerge()
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, merged.model.backbone.get_parameter(name)), name
    assert any(not torch.equal(weight, changed[name]) for name, weight in weights_of(plain).items())
    assert torch.equal(merged(*mixed), expected)


def test_subtracting_would_not_bring_them_back(tiny):
    merged = tiny.load(torch_dtype=torch.bfloat16, merge_lora=True)
    adapters = merged.model.adapters
    kept, name = dict(adapters._kept), adapters.merged
    differs = False
    for layer in adapters._layers_of(name).values():
        weight = layer.get_base_layer().weight
        delta = layer.scaling[name] * (layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float())
        differs |= not torch.equal((weight.float() - delta).bfloat16(), kept[weight])
    assert differs


def test_trained_weights_agree_within_the_stated_tolerance(batch):
    plain = load_reward(NAME)
    expected = plain(*batch)
    merged = load_reward(NAME, merge_lora=True)
    assert_close(merged(*batch), expected, rtol=0, atol=1e-4 * plain.card.spread)
    half = load_reward(NAME, torch_dtype=torch.bfloat16)
    in_half = half(*batch)
    merged_half = load_reward(NAME, torch_dtype=torch.bfloat16, merge_lora=True)(*batch)
    assert (merged_half - in_half).abs().max() < 0.1 * plain.card.spread


def test_a_merged_backbone_is_never_shared(batch):
    first = load_reward(NAME, merge_lora=True)
    second, third = load_reward(NAME), load_reward(NAME, merge_lora=True)
    assert len({id(reward.model) for reward in (first, second, third)}) == 3
    assert second.model.adapters.merged is None
    assert load_reward(NAME).model is second.model


def test_nothing_else_runs_while_one_is_merged(batch):
    reward = load_reward(NAME, merge_lora=True)
    with pytest.raises(ValueError, match="merged into the language model"):
        reward.add_dimension("shapes-llava-reward-safety")
    with pytest.raises(ValueError, match="merged into the language model"):
        reward.model.train_dimension("alignment")
    reward.model.adapters.unmerge()
    reward.add_dimension("shapes-llava-reward-safety")
    assert reward.score_dimensions(*batch).keys() == {"alignment", "safety"}


def test_the_checkpoint_is_that_of_the_adapter(batch, tmp_path):
    reward, plain = load_reward(NAME, merge_lora=True), load_reward(NAME)
    reward.save_pretrained(tmp_path / "saved")
    saved = load_reward("llava-reward", adapter=tmp_path / "saved", torch_dtype=torch.float32)
    assert_close(saved(*batch), plain(*batch))


def test_a_moved_model_comes_back_in_its_new_dtype():
    reward = load_reward(NAME, merge_lora=True)
    before = load_reward(NAME).to(dtype=torch.bfloat16)
    reward.to(dtype=torch.bfloat16)
    reward.model.adapters.unmerge()
    for name, weight in before.model.backbone.named_parameters():
        assert torch.equal(weight, reward.model.backbone.get_parameter(name)), name


def test_several_dimensions_and_quantised_weights_are_refused(phi):
    with pytest.raises(ValueError, match="one dimension"):
        phi.load(["alignment", "safety"], merge_lora=True)
    with pytest.raises(ValueError, match="quantization_config"):
        phi.load(merge_lora=True, quantization_config=object())
