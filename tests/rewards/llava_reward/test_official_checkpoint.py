"""Official checkpoints: every backbone's layout, and what must be refused."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.rewards.llava_reward.official_checkpoint import load_official_checkpoint, official_layouts
from tests.tiny.llava_next import write_llava_next
from tests.tiny.official_reward import rewrite_tensors, write_official_reward
from tests.tiny.phi3_vision import write_phi3_vision
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

WRITERS = {"phi3_v": write_phi3_vision, "qwen2_5_vl": write_qwen2_5_vl, "llava_next": write_llava_next}
PREFIXES = {"phi3_v": "model.", "qwen2_5_vl": "model.", "llava_next": "language_model.model."}
PROJECTORS = {
    "phi3_v": "model.vision_embed_tokens.img_projection.",
    "qwen2_5_vl": "visual.merger.",
    "llava_next": "multi_modal_projector.",
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture
def write(backbones, tmp_path):
    def write(model_type="phi3_v", **settings):
        return write_official_reward(tmp_path, backbone=backbones[model_type], model_type=model_type, **settings)

    return write


def load(folder, backbone="phi3_v", **options):
    return load_official_checkpoint(folder, backbone=backbone, dimension="safety", base_model="a/base", **options)


def edit_yaml(folder, **changes):
    path = folder / "reward_config.yaml"
    settings = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))


@pytest.mark.parametrize("model_type", WRITERS)
def test_every_layout(write, model_type):
    folder = write(model_type)
    checkpoint = load(folder, model_type)
    tensors, lora = torch.load(folder / "pytorch_model.bin", weights_only=True), checkpoint.lora
    official_lora = load_file(folder / "lora" / "adapter_model.safetensors")
    prefix = f"base_model.model.{PREFIXES[model_type]}"
    assert {prefix + key for key in lora} == set(official_lora)
    assert all(torch.equal(lora[key.removeprefix(prefix)], tensor) for key, tensor in official_lora.items())
    names = {"skip_ca.norm.": "ca_layernorm.", "skip_ca.": ""}
    expected = {PROJECTORS[model_type] + key: tensor for key, tensor in checkpoint.projector.items()}
    for key, tensor in checkpoint.head.items():
        ours = next((name for name in names if key.startswith(name)), "")
        expected[key.replace(ours, names.get(ours, ""))] = tensor
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(expected[key], tensor) and tensor.dtype == torch.bfloat16 for key, tensor in tensors.items())
    assert tuple(checkpoint.projector) == official_layouts()[model_type].projector_keys


@pytest.mark.parametrize("model_type", WRITERS)
def test_the_adapter_is_for_the_language_model_alone(write, model_type):
    checkpoint = load(write(model_type), model_type)
    config = checkpoint.lora_config
    assert config.target_modules == set(checkpoint.lora_modules)
    assert all(module.startswith("layers.") for module in config.target_modules)
    assert (config.r, config.lora_alpha, config.inference_mode) == (4, 8, True)
    assert (config.base_model_name_or_path, config.auto_mapping) == ("a/base", None)


@pytest.mark.parametrize("model_type", WRITERS)
def test_conversion_keeps_everything(write, model_type, tmp_path):
    official = load(write(model_type), model_type)
    own = load_own_checkpoint(official.save(tmp_path / "own"))
    assert own.config == official.config
    for part in ("lora", "projector", "head"):
        tensors, others = getattr(official, part), getattr(own, part)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def test_settings_of_the_config(write):
    config = load(write(value_head_dim=2)).config  # ignored by the official code without general preference
    assert (config.objective, config.value_head_dim, config.temperature) == ("bradley-terry", 1, 0.1)
    assert (config.backbone, config.dimension, config.base_model) == ("phi3_v", "safety", "a/base")
    assert (config.cross_attention, config.attends_to, config.backbone_options) == (True, "visual", {"num_crops": 16})
    assert load(write(), objective="binary").config.objective == "binary"
    config = load(write(is_general_preference=True, value_head_dim=4, add_cross_attention=False)).config
    assert (config.objective, config.value_head_dim, config.cross_attention) == ("general-preference", 4, False)
    assert load(write(is_general_preference=True, value_head_dim=1)).config.objective == "binary"


def test_qwen_attends_to_nothing_and_says_so(write, caplog):
    assert load(write("qwen2_5_vl"), "qwen2_5_vl").config.attends_to == "nothing"
    assert "padding token" in caplog.text
    caplog.clear()
    assert load(write("qwen2_5_vl", add_cross_attention=False), "qwen2_5_vl").config.attends_to == "visual"
    assert caplog.text == ""


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", ""])
def test_wrappers_before_the_names(write, wrapper):
    folder = write()
    expected = load(folder)
    rewrite_tensors(folder / "pytorch_model.bin", lambda tensors: {wrapper + key: tensors[key] for key in tensors})
    loaded = load(folder)
    assert all(torch.equal(loaded.head[key], tensor) for key, tensor in expected.head.items())
    assert loaded.projector.keys() == expected.projector.keys()


@pytest.mark.parametrize("asked", WRITERS)
@pytest.mark.parametrize("made_for", WRITERS)
def test_another_backbone_is_recognised(write, made_for, asked):
    folder = write(made_for, add_cross_attention=False)
    if asked == made_for:
        assert load(folder, asked).config.backbone == asked
        return
    with pytest.raises(ValueError, match=f"checkpoint for {made_for}, not {asked}"):
        load(folder, asked)


@pytest.mark.parametrize(("made_for", "asked"), [("phi3_v", "qwen2_5_vl"), ("qwen2_5_vl", "phi3_v")])
def test_another_backbone_is_recognised_by_lora_alone(write, made_for, asked, caplog):
    folder = write(made_for, add_cross_attention=False)
    rewrite_tensors(folder / "pytorch_model.bin", lambda t: {"value_head.weight": t["value_head.weight"]})
    with pytest.raises(ValueError, match=f"another backbone than {asked}: LoRA adapts q"):
        load(folder, asked)
    assert load(folder, made_for).projector == {}
    assert "base model's own projector" in caplog.text


@pytest.mark.parametrize(
    "name", ["reward_config.yaml", "pytorch_model.bin", "lora/adapter_config.json", "lora/adapter_model.safetensors"]
)
def test_an_absent_file_is_named(write, name):
    folder = write()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace("safetensors", "bin")):
        load(folder)


def test_no_folder():
    with pytest.raises(FileNotFoundError, match=r"lacks reward_config\.yaml.*it is no folder"):
        load("nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_head_dim": None}, "lacks value_head_dim"),
        ({"value_head_dim": "2"}, "value_head_dim must be of type int, got '2'"),
        ({"value_head_dim": True}, "value_head_dim must be of type int"),
        ({"is_general_preference": 1}, "is_general_preference must be of type bool"),
        ({"general_preference_tau": "1e-1"}, "general_preference_tau must be of type number"),
        ({"general_preference_tau": 0}, "temperature must be positive"),
        ({"is_general_preference": True, "value_head_dim": 3}, "must be even for general preferences, got 3"),
        ({"is_general_preference": True, "value_head_dim": 4}, r"\(1, \d+\), expected \(4, \d+\)"),
        ({"add_cross_attention": False}, "does not have: W_q.weight, W_k.weight"),
    ],
)
def test_wrong_settings(write, changes, message):
    folder = write()
    edit_yaml(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: b: c"])
def test_no_mapping(write, text):
    folder = write()
    (folder / "reward_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"reward_config\.yaml"):
        load(folder)


def test_skip_ca_that_the_official_code_cannot_have(write):
    folder = write("llava_next")
    edit_yaml(folder, add_cross_attention=True)
    with pytest.raises(ValueError, match="no SkipCA for llava_next"):
        load(folder, "llava_next")


@pytest.mark.parametrize(
    "key", ["value_head.weight", "W_k.weight", "ca_layernorm.weight", "model.vision_embed_tokens.img_projection.2.bias"]
)
def test_an_absent_tensor_is_named(write, key):
    folder = write()
    rewrite_tensors(folder / "pytorch_model.bin", lambda t: {name: tensor for name, tensor in t.items() if name != key})
    with pytest.raises(ValueError, match=f"pytorch_model.bin lacks {key.removeprefix('model.vision_embed_tokens.')}"):
        load(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_q.weight": torch.zeros(8, 8)}, r"W_q\.weight has shape \(8, 8\)"),
        ({"module.W_q.weight": torch.zeros(8, 8)}, "'W_q.weight' and 'module.W_q.weight', which are both 'W_q.weight'"),
        ({"reward.W_q.weight": torch.zeros(8, 8)}, "several tensors of one name: W_q.weight, reward.W_q.weight"),
        ({"value_head.bias": torch.zeros(1)}, "does not have: value_head.bias"),
        ({"img_projection.0.lora_A.default.weight": torch.zeros(1)}, "does not have: img_projection.0.lora_A"),
    ],
)
def test_tensors_that_do_not_fit(write, tensors, message):
    folder = write()
    rewrite_tensors(folder / "pytorch_model.bin", lambda others: others | tensors)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_what_the_official_code_does_not_read_is_told(write, caplog):
    folder = write()
    edit_yaml(folder, layer_id=32)
    rewrite_tensors(folder / "pytorch_model.bin", lambda others: others | {"prompt_head.weight": torch.zeros(1)})
    with caplog.at_level(logging.WARNING):
        assert "prompt_head.weight" not in load(folder).head
    assert "layer_id" in caplog.text and "prompt_head.weight" in caplog.text


class Trap:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("contents", [Trap(), {"value_head.weight": Trap()}, [torch.zeros(1)], {"a": 1.0}])
def test_pickles_are_not_run(write, contents, capsys):
    folder = write()
    torch.save(contents, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load(folder)
    assert "never" not in capsys.readouterr().out
    (folder / "pytorch_model.bin").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({"is_general_preference": True, "value_head_dim": 2}, "binary", "must be general-preference"),
        ({"is_general_preference": True}, "bradley-terry", "must be binary"),
        ({}, "general-preference", "must be bradley-terry or binary"),
    ],
)
def test_an_objective_that_it_cannot_have(write, settings, asked, message):
    folder = write(**settings)
    with pytest.raises(ValueError, match=message):
        load(folder, objective=asked)


def test_an_unknown_backbone(write):
    with pytest.raises(ValueError, match="'clip', only for phi3_v"):
        load(write(), "clip")
