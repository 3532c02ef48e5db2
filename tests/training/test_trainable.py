"""What is trained, in which dtype, and how much of the real models that is."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards.llava_reward.backbones.base import random_backbone
from fk_reward.training.trainable import TrainableShare, full_size_share, trainable_share
from tests.tiny.training import PROMPTS, frozen_weights, image, make_model, trained_weights

HUB_WEIGHTS = {"phi3_v": 4_146_621_440, "qwen2_5_vl": 8_292_166_656}
"""Of the whole models, head included: half the bytes of their bfloat16 files (the hub shows 4.15 and 8.29 billion)."""


def backward(model):
    outputs = model([image(0, (40, 60)), image(1)], PROMPTS[:2])
    outputs.square().sum().backward()
    return outputs


def test_all_that_is_trained_gets_a_gradient_in_float32_on_a_bfloat16_backbone(tiny_backbone):
    model_type, folder = tiny_backbone
    model = make_model(folder, model_type, dtype=torch.bfloat16).train()
    lora = model.network.adapters.parameters_of("alignment")
    torch.nn.init.normal_(next(weight for name, weight in lora.items() if ".lora_B" in name), std=0.1)
    assert backward(model).dtype == torch.float32
    trained = trained_weights(model)
    parts = {"lora": ".lora_", "projector": ".projectors.", "head": ".heads."}
    assert {part for part, mark in parts.items() if any(mark in name for name in trained)} == set(parts)
    assert all(any(mark in name for mark in parts.values()) for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert {weight.dtype for weight in frozen_weights(model).values()} == {torch.bfloat16}
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


@pytest.mark.parametrize("part", ["projector", "skip_ca", "lora"])
def test_parts_can_be_left_out(tiny_phi, part):
    options = {"projector": {"projector": False}, "skip_ca": {"cross_attention": False}, "lora": {"rank": 0}}[part]
    mark = {"projector": ".projectors.", "skip_ca": ".skip_ca.", "lora": ".lora_"}[part]
    model = make_model(tiny_phi, **options).train()
    backward(model)
    assert not any(mark in name for name in trained_weights(model))
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_only_the_language_model_is_in_training_mode(tiny_phi):
    model = make_model(tiny_phi)
    for mode in (True, False):
        model.train(mode)
        language_model = model.network.backbone.language_model
        inside = set(language_model.modules())
        assert {module.training for module in inside} == {mode}
        assert not any(module.training for module in model.network.backbone.modules() if module not in inside)


def test_lora_changes_nothing_before_training(tiny_phi):
    images, prompts = [image(0)], PROMPTS[:1]
    without = make_model(tiny_phi, rank=0).eval()
    model = make_model(tiny_phi).eval()
    without.network.heads.load_state_dict(model.network.heads.state_dict())
    torch.testing.assert_close(model(images, prompts), without(images, prompts))


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(tiny_phi):
    before = torch.random.get_rng_state()
    one, other = trained_weights(make_model(tiny_phi)), trained_weights(make_model(tiny_phi))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_is_restored_bit_for_bit(tiny_phi):
    model, other = make_model(tiny_phi), make_model(tiny_phi)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    expected = trained_weights(model)
    assert any(not torch.equal(expected[name], weight) for name, weight in trained_weights(other).items())
    other.restore(model.checkpoint(model.state_dict()))
    for name, weight in trained_weights(other).items():
        assert torch.equal(expected[name], weight), name


@pytest.mark.parametrize("change", [{"temperature": 0.2}, {"cross_attention": False}, {"dimension": "safety"}])
def test_a_checkpoint_of_something_else_is_refused(tiny_phi, change):
    with pytest.raises(ValueError, match="another kind"):
        make_model(tiny_phi).restore(make_model(tiny_phi, **change).checkpoint())


def test_lora_of_other_modules_is_refused(tiny_phi):
    with pytest.raises(ValueError, match="other modules"):
        make_model(tiny_phi).restore(make_model(tiny_phi, rank=0).checkpoint())


def test_share_counts_every_weight_once(tiny_phi):
    model = make_model(tiny_phi)
    trained, frozen = trained_weights(model), frozen_weights(model)
    expected = [sum(weight.numel() for weight in part.values()) for part in (trained, frozen)]
    assert trainable_share(model) == TrainableShare(expected[0], sum(expected))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", HUB_WEIGHTS)
def test_share_at_full_size(model_type):
    with torch.device("meta"):
        backbone = random_backbone(model_type, full_size=True)
    weights = sum(weight.numel() for weight in backbone.parameters())
    config = backbone.language_model.config
    weights += config.vocab_size * config.hidden_size  # the language-model head, which the reward does not have
    if model_type == "phi3_v":  # nor does it have the last layer of the CLIP tower, which is never read
        weights += sum(
            weight.numel() for weight in backbone.model.vision_embed_tokens.img_processor.encoder.layers[0].parameters()
        )
    assert weights == HUB_WEIGHTS[model_type]
    share = full_size_share(model_type)
    expected = {"phi3_v": (251_670_528, 4_287_195_136), "qwen2_5_vl": (406_078_208, 8_153_247_488)}
    assert (share.trained, share.total) == expected[model_type]


def test_an_unknown_full_size_is_refused():
    with pytest.raises(ValueError, match="phi3_v, qwen2_5_vl"):
        full_size_share("gpt-2")
