"""Loading of Qwen2.5-VL checkpoints: names of weights, shards, what is missing, options."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QwenVLBackbone
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl, write_shards


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return write_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), num_shards=3)


@pytest.fixture
def folder(hub_folder, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(hub_folder, tmp_path / "checkpoint")


def read_weights(folder):
    return {name: tensor for shard in folder.glob("model-*.safetensors") for name, tensor in load_file(shard).items()}


def rewrite(folder, weights, *, num_shards=2):
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    write_shards(folder, weights, num_shards=num_shards)


def new_name(name):
    """The name that transformers 5 gives to a weight of the hub."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def assert_loaded(backbone, weights):
    """Every weight but the head's is in the backbone, under the name that follows from the hub's."""
    state = {f"model.{name}": tensor for name, tensor in backbone.model.state_dict().items()}
    state |= {f"model.visual.merger.{name}": tensor for name, tensor in backbone.projector.state_dict().items()}
    expected = {new_name(name): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_the_hub_s_names_and_shards(hub_folder):
    weights = read_weights(hub_folder)
    assert len(list(hub_folder.glob("model-*.safetensors"))) == 3
    assert {name.split(".")[0] for name in weights} == {"visual", "model", "lm_head"}
    assert_loaded(QwenVLBackbone.from_pretrained(hub_folder), weights)


def test_the_names_of_transformers_5(folder):
    weights = read_weights(folder)
    rewrite(folder, {new_name(name): tensor for name, tensor in weights.items()}, num_shards=1)
    assert_loaded(QwenVLBackbone.from_pretrained(folder), weights)


def test_a_checkpoint_without_head(folder):
    """Small models on the hub tie the head to the embeddings."""
    weights = read_weights(folder)
    del weights["lm_head.weight"]
    rewrite(folder, weights)
    assert_loaded(QwenVLBackbone.from_pretrained(folder), weights)


def test_a_wrong_weight_is_noticed(hub_folder):
    backbone = QwenVLBackbone.from_pretrained(hub_folder)
    backbone.projector.mlp[0].bias.data[0] += 1e-3
    with pytest.raises(AssertionError, match=r"merger\.mlp\.0\.bias"):
        assert_loaded(backbone, read_weights(hub_folder))


@pytest.mark.parametrize(
    "name", ["visual.merger.mlp.0.weight", "visual.blocks.1.attn.qkv.bias", "model.layers.1.self_attn.q_proj.weight"]
)
def test_a_missing_weight_raises(folder, name):
    weights = read_weights(folder)
    del weights[name]
    rewrite(folder, weights)
    with pytest.raises(ValueError, match=rf"lacks weights: {new_name(name).removeprefix('model.')}\.$"):
        QwenVLBackbone.from_pretrained(folder)


def test_a_foreign_weight_raises(folder):
    rewrite(folder, read_weights(folder) | {"model.layers.1.self_attn.q_proj.lora_A": torch.ones(2)})
    with pytest.raises(ValueError, match=r"Qwen2_5_VLModel does not have: .*lora_A"):
        QwenVLBackbone.from_pretrained(folder)


def test_a_weight_of_another_size_raises(folder):
    weights = read_weights(folder)
    weights["model.norm.weight"] = torch.ones(32)
    rewrite(folder, weights)
    with pytest.raises(ValueError, match=r"other sizes .*norm\.weight \(32,\)"):
        QwenVLBackbone.from_pretrained(folder)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
def test_a_missing_file_raises(folder, file):
    (folder / file).unlink()
    with pytest.raises(OSError, match=file.split(".")[0]):
        QwenVLBackbone.from_pretrained(folder)


def test_another_model_type_raises(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="'qwen2_vl', where one of type 'qwen2_5_vl'"):
        QwenVLBackbone.from_pretrained(folder)


def test_pixel_limits_are_the_folder_s_unless_given(folder):
    assert QwenVLBackbone.from_pretrained(folder).options == {"min_pixels": 3136, "max_pixels": 12845056}
    backbone = QwenVLBackbone.from_pretrained(folder, min_pixels=4 * 784, max_pixels=6 * 784)
    assert backbone.options == {"min_pixels": 4 * 784, "max_pixels": 6 * 784}
    inputs = backbone.prepare([torch.ones(3, 500, 500), torch.ones(3, 20, 20)], ["a", "b"])
    assert inputs.num_visual_tokens == [4, 4]
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 1568}))
    assert QwenVLBackbone.from_pretrained(folder, max_pixels=7840).options == {"min_pixels": 784, "max_pixels": 7840}


def test_dtype(folder):
    backbone = QwenVLBackbone.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}
    assert backbone.dtype == torch.bfloat16
    assert (backbone.model_type, backbone.norm_eps, backbone.hidden_size) == ("qwen2_5_vl", 1e-6, 64)


def test_device_map(hub_folder):
    backbone = QwenVLBackbone.from_pretrained(hub_folder, device_map={"": "cpu"})
    assert_loaded(backbone, read_weights(hub_folder))
    assert backbone.prepare([torch.ones(3, 60, 60)], ["a"]).pixel_values.device == backbone.device


def test_the_same_seed_gives_the_same_checkpoint(hub_folder, tmp_path):
    again, other = write_qwen2_5_vl(tmp_path / "again"), write_qwen2_5_vl(tmp_path / "other", seed=1)
    name = "visual.merger.mlp.0.weight"
    assert torch.equal(read_weights(hub_folder)[name], read_weights(again)[name])
    assert not torch.equal(read_weights(hub_folder)[name], read_weights(other)[name])
