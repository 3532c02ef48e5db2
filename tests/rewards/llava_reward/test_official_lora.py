"""The LoRA of official checkpoints: the names it may have, and adapters of anything but the language model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig

from fk_reward.rewards.llava_reward.official_checkpoint import load_official_checkpoint
from tests.tiny.official_reward import rewrite_tensors, write_official_reward
from tests.tiny.phi3_vision import write_phi3_vision


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("phi"))


@pytest.fixture
def write(backbone, tmp_path):
    return lambda **settings: write_official_reward(tmp_path, backbone=backbone, model_type="phi3_v", **settings)


def load(folder):
    return load_official_checkpoint(folder, backbone="phi3_v", dimension="safety", base_model="a/base")


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace("base_model.model.model.", "base_model.model.model.language_model."),
    ],
    ids=["without PEFT's prefix", "with the adapter's name", "names of transformers 5"],
)
@pytest.mark.parametrize("pickled", [True, False])
def test_other_names_of_lora(write, rename, pickled):
    folder = write(pickled_lora=pickled)
    expected = load(folder).lora
    file = folder / "lora" / ("adapter_model.bin" if pickled else "adapter_model.safetensors")
    rewrite_tensors(file, lambda tensors: {rename(key): tensor for key, tensor in tensors.items()})
    loaded = load(folder).lora
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.o_proj.lora_magnitude_vector",
    ],
)
def test_lora_elsewhere_is_refused(write, key):
    folder = write()
    rewrite_tensors(folder / "lora" / "adapter_model.safetensors", lambda tensors: tensors | {key: torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="is no LoRA matrix of the language model"):
        load(folder)


def test_two_adapters_in_one_file_are_refused(write):
    folder = write()

    def double(tensors):
        return tensors | {key.replace(".weight", ".other.weight"): tensor.clone() for key, tensor in tensors.items()}

    rewrite_tensors(folder / "lora" / "adapter_model.safetensors", double)
    with pytest.raises(ValueError, match="must hold one adapter"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "the configuration says 8"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not plain LoRA"),
    ],
)
def test_lora_configurations_that_do_not_fit(write, changes, message):
    folder = write()
    config = dataclasses.replace(LoraConfig.from_pretrained(str(folder / "lora")), **changes)
    config.save_pretrained(str(folder / "lora"))
    with pytest.raises(ValueError, match=message):
        load(folder)
