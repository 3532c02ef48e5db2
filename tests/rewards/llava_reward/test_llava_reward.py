"""LlavaReward on all backbones: against weights merged by hand, alone and in batches, switched and mixed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from typer.testing import CliRunner

from fk_reward.cli import app
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.backbones.base import load_backbone
from fk_reward.rewards.llava_reward.loading import read_checkpoint

DIMENSIONS = ["alignment", "fidelity", "safety"]


def merged_scores(tiny, dimension, images, prompts):
    """The reward by the formula: LoRA added to the weights by hand, attention over all tokens, one image at a time."""
    backbone = load_backbone(tiny.backbone, torch_dtype=torch.float32)
    checkpoint = read_checkpoint(tiny.adapters, backbone=tiny.model_type, dimension=dimension)
    scale = checkpoint.lora_config.lora_alpha / checkpoint.lora_config.r
    for name, module in backbone.language_model.named_modules():
        if f"{name}.lora_A.weight" in checkpoint.lora:
            a, b = (checkpoint.lora[f"{name}.lora_{half}.weight"] for half in "AB")
            module.weight.data += scale * b.float() @ a.float()
    projector = backbone.projector
    projector.load_state_dict(checkpoint.projector)
    return torch.stack([_one(backbone, projector, checkpoint, i, p) for i, p in zip(images, prompts, strict=True)])


def _one(backbone, projector, checkpoint, image, prompt):
    inputs = backbone.prepare([image], [prompt])
    with torch.no_grad():
        visual = backbone.project(backbone.encode_images(inputs), inputs, projector)
        states = backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state[0]
    head, config = {name: tensor.float() for name, tensor in checkpoint.head.items()}, checkpoint.config
    if config.cross_attention:
        attended = torch.zeros_like(states)
        if config.attends_to == "visual":
            query, key, value = states @ head["skip_ca.W_q.weight"].T, visual, visual
            key, value = (x @ head[f"skip_ca.W_{n}.weight"].T for x, n in ((key, "k"), (value, "v")))
            attended = torch.softmax(query @ key.T / states.shape[1] ** 0.5, dim=-1) @ value
        states = torch.nn.functional.rms_norm(
            states + attended, states.shape[1:], head["skip_ca.norm.weight"], backbone.norm_eps
        )
    return (states[-1] @ head["value_head.weight"].T).squeeze()


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_scores_are_those_of_merged_weights(tiny, dimension, mixed):
    images, prompts = mixed
    scores = tiny.load(dimension)(images, prompts)
    assert_close(scores, merged_scores(tiny, dimension, images, prompts), rtol=1e-4, atol=1e-4)
    assert scores.std() > 1e-2  # otherwise nothing was compared


def test_a_swapped_adapter_is_noticed(tiny, mixed):
    images, prompts = mixed
    expected = merged_scores(tiny, "alignment", images, prompts)
    with pytest.raises(AssertionError):
        assert_close(tiny.load("safety")(images, prompts), expected, rtol=1e-4, atol=1e-4)


def test_a_shuffled_prompt_is_noticed(tiny, mixed):
    images, prompts = mixed
    reward = tiny.load()
    assert ((reward(images, prompts) - reward(images, prompts[::-1])).abs() > 1e-3).all()


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_row_does_not_depend_on_its_batch(tiny, dimension, mixed):
    images, prompts = mixed
    reward = tiny.load(dimension)
    alone = torch.cat([reward.embed(image, prompt) for image, prompt in zip(images, prompts, strict=True)])
    assert_close(reward.embed(images, prompts), alone, rtol=0, atol=1e-4)


def test_switching_there_and_back_changes_no_bit(tiny, batch):
    reward = tiny.load(DIMENSIONS)
    before = reward(*batch)
    other = reward.set_dimension("safety")(*batch)
    after = reward.set_dimension("alignment")(*batch)
    assert torch.equal(before, after)
    assert ((before - other).abs() > 1e-3).all()


def test_dimensions_in_one_pass_are_those_of_separate_passes(tiny, mixed):
    images, prompts = mixed
    reward = tiny.load([*DIMENSIONS, "overall"])
    together = reward.score_dimensions(images, prompts)
    assert list(together) == [*DIMENSIONS, "overall"]
    for dimension, scores in together.items():
        assert_close(scores, reward.set_dimension(dimension)(images, prompts), rtol=0, atol=1e-5)


def test_the_vision_tower_runs_once_for_all_dimensions(tiny, batch):
    reward = tiny.load(DIMENSIONS)
    calls = []
    encode = reward.model.backbone.encode_images
    reward.model.backbone.encode_images = lambda inputs: calls.append(1) or encode(inputs)
    reward.score_dimensions(*batch, ["alignment", "safety"])
    del reward.model.backbone.encode_images
    assert len(calls) == 1


def test_batch_size_changes_nothing(tiny, mixed):
    images, prompts = mixed
    expected = tiny.load(batch_size=None)(images, prompts)
    assert_close(tiny.load(batch_size=1)(images, prompts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_converted_official_checkpoint_gives_the_same_scores(tiny, dimension, batch, tmp_path):
    official = next((tiny.adapters / dimension).iterdir())
    options = ["--backbone", tiny.model_type, "--dimension", dimension]
    result = CliRunner().invoke(app, ["convert", str(official), str(tmp_path / "own"), *options])
    assert result.exit_code == 0, result.output
    own = load_reward("llava-reward", backbone=tiny.backbone, adapter=tmp_path / "own", torch_dtype=torch.float32)
    assert torch.equal(own.embed(*batch), tiny.load(dimension).embed(*batch))


def test_save_and_load_gives_the_same_scores(tiny, batch, tmp_path):
    for dimension in ("alignment", "overall"):
        reward = tiny.load(dimension)
        reward.save_pretrained(tmp_path / dimension)
        again = load_reward(
            "llava-reward", backbone=tiny.backbone, adapter=tmp_path / dimension, torch_dtype=torch.float32
        )
        assert torch.equal(again.embed(*batch), reward.embed(*batch))
        stored = load_file(tmp_path / dimension / "reward.safetensors")
        assert any(name.startswith("head.") for name in stored)


def test_the_gradient_is_that_of_finite_differences(tiny, batch):
    images, prompts = batch[0][:1], batch[1][:1]
    reward = tiny.load()
    image = images.clone().requires_grad_()
    reward(image, prompts).sum().backward()
    direction = image.grad / image.grad.norm()
    step = 2e-2
    ends = [reward((images + sign * step * direction).clamp(0, 1), prompts) for sign in (1, -1)]
    assert_close((ends[0] - ends[1]) / (2 * step), image.grad.norm()[None], rtol=0.05, atol=0)


def test_no_graph_without_a_request(tiny, batch):
    assert not tiny.load()(*batch).requires_grad


def test_half_precision_is_close(tiny, batch):
    exact = tiny.load()(*batch)
    half = tiny.load(torch_dtype=torch.bfloat16)(*batch)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.abs().max() + 0.1
