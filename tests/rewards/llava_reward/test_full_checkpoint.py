"""Rewards that the official code fine-tuned as a whole: one folder with model and head."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.backbones.base import load_backbone
from fk_reward.rewards.llava_reward.full_checkpoint import is_full_checkpoint
from fk_reward.rewards.llava_reward.head import RewardHead
from tests.tiny.llava_reward import write_tiny
from tests.tiny.phi3_vision import CONFIG, write_phi3_vision, write_shards

WIDTH = CONFIG["hidden_size"]


def head_tensors(outputs, *, cross=True):
    generator = torch.Generator().manual_seed(outputs)
    tensors = {"value_head.weight": torch.randn(outputs, WIDTH, generator=generator)}
    if cross:
        tensors |= {f"W_{name}.weight": torch.randn(WIDTH, WIDTH, generator=generator) / 8 for name in "qkv"}
        tensors["ca_layernorm.weight"] = 1 + torch.rand(WIDTH, generator=generator)
    return tensors


def write_full(folder, outputs=1, *, cross=True, pickled=False):
    """As `save_model` of the official code: the tensors of the head among those of the model."""
    write_phi3_vision(folder)
    weights = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    weights |= head_tensors(outputs, cross=cross)
    if not pickled:
        write_shards(folder, weights, num_shards=2)
        return folder
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_full(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def tiny_phi(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("phi"), "phi3_v")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def expected_outputs(folder, images, prompts, tensors):
    """Backbone and head by hand."""
    backbone = load_backbone(folder, torch_dtype=torch.float32)
    names = {"W_q": "skip_ca.W_q", "W_k": "skip_ca.W_k", "W_v": "skip_ca.W_v", "ca_layernorm": "skip_ca.norm"}
    head = RewardHead(
        WIDTH, value_head_dim=len(tensors["value_head.weight"]), cross_attention="W_q.weight" in tensors, eps=1e-5
    )
    split = {name.rpartition(".")[0]: tensor for name, tensor in tensors.items()}
    head.load_state_dict({f"{names.get(name, name)}.weight": tensor for name, tensor in split.items()})
    rows = []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = backbone.prepare([image], [prompt])
        visual = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
        states = backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state
        mask = torch.ones(1, len(visual), dtype=torch.bool)
        rows.append(head(states[:, -1], visual[None], mask))
    return torch.cat(rows)


PROMPTS = ["a red cat", "two dogs"]


@pytest.mark.parametrize(("outputs", "cross", "pickled"), [(1, True, False), (1, False, True), (2, True, False)])
def test_outputs_are_those_of_backbone_and_head(tmp_path, images, outputs, cross, pickled):
    folder = write_full(tmp_path, outputs, cross=cross, pickled=pickled)
    reward = load_reward("llava-reward", adapter=folder, dimension="fidelity", torch_dtype=torch.float32)
    expected = expected_outputs(folder, images, PROMPTS, head_tensors(outputs, cross=cross))
    assert_close(reward.embed(images, PROMPTS), expected, rtol=0, atol=1e-4)
    assert reward.config.objective == ("bradley-terry" if outputs == 1 else "general-preference")
    assert reward.config.cross_attention == cross
    assert reward.dimension == "fidelity"


def test_another_head_is_noticed(folder, images):
    reward = load_reward("llava-reward", adapter=folder, dimension="fidelity", torch_dtype=torch.float32)
    tensors = head_tensors(1) | {"W_v.weight": head_tensors(1)["W_k.weight"]}
    with pytest.raises(AssertionError):
        assert_close(reward.embed(images, PROMPTS), expected_outputs(folder, images, PROMPTS, tensors))


def test_it_does_not_go_onto_another_backbone(folder, tiny_phi, tmp_path):
    with pytest.raises(ValueError, match="fine-tuned as a whole"):
        load_reward("llava-reward", adapter=folder, backbone=tiny_phi.backbone, dimension="fidelity")


def test_a_dimension_must_be_named(folder):
    with pytest.raises(ValueError, match="dimension="):
        load_reward("llava-reward", adapter=folder)


def test_adapters_and_plain_models_are_not_taken_for_one(folder, tiny_phi):
    assert is_full_checkpoint(folder)
    assert not is_full_checkpoint(tiny_phi.backbone)
    assert not any(is_full_checkpoint(file.parent) for file in tiny_phi.adapters.rglob("reward_config.yaml"))


def test_missing_tensors_raise(tmp_path):
    folder = write_full(tmp_path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["W_q.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks W_q\.weight"):
        load_reward("llava-reward", adapter=folder, dimension="fidelity", torch_dtype=torch.float32)
