"""Adapters of Diffusers: the merged file, loaded by `load_lora_weights`, changes the weights by the formula."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from fk_reward.training.skills.adapter_files import fuse, merge_adapters, read_adapter
from tests.tiny.latent_diffusion import make_sd, make_sdxl
from tests.tiny.transformers_family import make_sd3

MAKERS = {"sd": make_sd, "sdxl": make_sdxl, "sd3": make_sd3}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WEIGHTS = [0.3, 0.9]


def parts_of(pipe):
    """The modules of a pipeline that adapters change."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


def write_expert(pipe, folder, *, rank, alpha, seed, only=None, targets=ATTENTION):
    """A random adapter, trained and saved as Diffusers' scripts do it, and its updates in the pipeline."""
    modules = {name: module for name, module in parts_of(pipe).items() if only is None or name in only}
    torch.manual_seed(seed)
    for name, module in modules.items():
        wanted = ["q_proj", "out_proj"] if name.startswith("text") else targets
        module.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted), adapter_name="default")
        for key, parameter in module.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(module) for name, module in modules.items()}
    pipe.save_lora_weights(str(folder), **layers, **_collate_lora_metadata(modules))
    found = deltas(pipe)
    pipe.unload_lora_weights()
    return found


def deltas(pipe):
    """Full name of a layer -> what PEFT adds to it."""
    return {
        f"{name}.{path}": sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        for name, module in parts_of(pipe).items()
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def base_weights(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name, module in parts_of(pipe).items()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("family", MAKERS)
def test_the_merged_adapter_of_a_pipeline(tmp_path, family):
    pipe = MAKERS[family]()
    parts = [
        write_expert(pipe, tmp_path / "a", rank=2, alpha=6, seed=1),
        write_expert(pipe, tmp_path / "b", rank=3, alpha=1, seed=2, targets=["to_q"]),
    ]
    assert merge_adapters([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", weights=WEIGHTS) == 0.0
    expected = {
        name: sum(w * part[name] for w, part in zip(WEIGHTS, parts, strict=True) if name in part) for name in parts[0]
    }
    pipe.load_lora_weights(str(tmp_path / "ab"))
    found = deltas(pipe)
    assert found.keys() == expected.keys()
    assert {name.partition(".")[0] for name in found} == set(parts_of(pipe))
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-6)
    pipe.unload_lora_weights()
    before = base_weights(pipe)
    fuse(pipe, tmp_path / "ab")
    for key, value in base_weights(pipe).items():
        delta = expected.get(key.removesuffix(".weight"), 0.0) if key.endswith(".weight") else 0.0
        torch.testing.assert_close(value, before[key] + delta, rtol=1e-5, atol=1e-5)


def test_one_expert_of_weight_1_is_itself(tmp_path):
    pipe = make_sd()
    expected = write_expert(pipe, tmp_path / "a", rank=2, alpha=6, seed=1)
    merge_adapters([tmp_path / "a"], tmp_path / "b")
    for name, layer in read_adapter(tmp_path / "b").items():
        torch.testing.assert_close(layer.delta(), expected[name], rtol=1e-5, atol=1e-6)


def test_alpha_comes_from_keys_or_metadata_or_is_the_rank(tmp_path):
    tensors = {"unet.x.lora_A.weight": torch.ones(2, 3), "unet.x.lora_B.weight": torch.ones(3, 2)}
    cases = [
        ({}, None, 1.0),
        ({"unet.x.alpha": torch.tensor(8.0)}, None, 4.0),
        ({}, {"unet.lora_alpha": 6, "unet.r": 2}, 3.0),
        ({}, {"unet.lora_alpha": 6, "unet.alpha_pattern": {"x": 1}}, 0.5),
        ({}, {"unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / 2**0.5),
    ]
    for more, metadata, scale in cases:
        told = {"format": "pt"} | ({} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)})
        save_file(tensors | more, tmp_path / "x.safetensors", metadata=told)
        assert read_adapter(tmp_path / "x.safetensors")["unet.x"].scale == pytest.approx(scale)


def test_names_of_diffusers_own_scripts(tmp_path):
    tensors = {
        "unet.a.to_q.lora.down.weight": torch.ones(1, 3),
        "unet.a.to_q.lora.up.weight": torch.ones(3, 1),
        "text_encoder.q_proj.lora_linear_layer.down.weight": torch.ones(1, 3),
        "text_encoder.q_proj.lora_linear_layer.up.weight": torch.ones(3, 1),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert set(read_adapter(tmp_path / "x.safetensors")) == {"unet.a.to_q", "text_encoder.q_proj"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, None, "load_lora_weights and write it"),
        ({"unet.x.lora_A.weight": torch.ones(1, 1)}, None, r"unet\.x\.lora_B\.weight is missing"),
        (
            {"unet.x.lora_A.weight": torch.ones(1, 1), "unet.x.lora_B.weight": torch.ones(1, 1)},
            {"unet.use_dora": True},
            "DoRA",
        ),
    ],
)
def test_what_cannot_be_read(tmp_path, tensors, metadata, message):
    told = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(tensors, tmp_path / "x.safetensors", metadata=told)
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path / "x.safetensors")


def test_a_missing_and_a_damaged_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        read_adapter(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read"):
        read_adapter(tmp_path / "x.safetensors")


def test_a_smaller_rank_says_what_it_loses(tmp_path):
    pipe = make_sd()
    write_expert(pipe, tmp_path / "a", rank=2, alpha=2, seed=1, only=("unet",))
    write_expert(pipe, tmp_path / "b", rank=2, alpha=2, seed=2, only=("unet",))
    lost = merge_adapters([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", rank=2)
    assert 0.05 < lost < 0.8
    ranks = {
        tensor.shape[0]
        for key, tensor in load_file(tmp_path / "ab/pytorch_lora_weights.safetensors").items()
        if "_A" in key
    }
    assert ranks == {2}


def test_a_pipeline_without_adapters(tmp_path):
    with pytest.raises(ValueError, match="has no load_lora_weights"):
        fuse(object(), tmp_path)
