"""Loading the LLaVA-NeXT backbone, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextModel

from fk_reward.rewards.llava_reward.backbones.llava_next import AnyResTransform, LlavaNextBackbone
from tests.tiny.llava_next import write_llava_next


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_next(tmp_path_factory.mktemp("llava-next"))


def write_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A checkpoint to whose weights `change` was applied."""
    write_llava_next(folder, num_shards=1)
    file = folder / "model-00001-of-00001.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, file.name)}))
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> LlavaNextBackbone:
    return LlavaNextBackbone.from_pretrained(folder)


def test_everything_is_frozen(backbone: LlavaNextBackbone) -> None:
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_old_names_are_all_read(folder: Path) -> None:
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) == 2, "the checkpoint is sharded"
    assert {"language_model.model.norm.weight", "image_newline", "multi_modal_projector.linear_1.bias"} <= names.keys()
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    _, info = LlavaNextModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["mismatched_keys"]
    assert info["unexpected_keys"] == {"language_model.lm_head.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "image_newline",
        "multi_modal_projector.linear_1.bias",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
    ],
)
def test_a_missing_weight_is_an_error(tmp_path: Path, name: str) -> None:
    folder = write_changed(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lacks weights: .*{name.rpartition('.')[2]}"):
        LlavaNextBackbone.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("language_model.model.norm.weight", r"other sizes .*norm\.weight \(3,\)"),
        ("language_model.model.layers.0.self_attn.q_proj.bias", r"LlavaNextModel does not have: .*q_proj\.bias"),
    ],
)
def test_a_weight_of_another_architecture_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    folder = write_changed(tmp_path, lambda weights: weights.update({name: torch.ones(3)}))
    with pytest.raises(ValueError, match=message):
        LlavaNextBackbone.from_pretrained(folder)


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    folder = write_llava_next(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"has no config\.json"):
        LlavaNextBackbone.from_pretrained(folder)


def test_a_prompt_with_the_image_token_is_refused(backbone: LlavaNextBackbone) -> None:
    with pytest.raises(ValueError, match="must not contain '<image>'"):
        backbone.prepare([torch.zeros(3, 8, 8)], ["a cat <image>"])


def test_as_many_prompts_as_images(backbone: LlavaNextBackbone) -> None:
    with pytest.raises(ValueError, match="zip"):
        backbone.prepare([torch.zeros(3, 8, 8)] * 2, ["a cat"])


def test_a_transform_of_another_model_is_refused(backbone: LlavaNextBackbone) -> None:
    other = AnyResTransform(crop_size=8, grid_pinpoints=((8, 16),), pixels=backbone.transform.pixels)
    with pytest.raises(ValueError, match="does not fit the model"):
        LlavaNextBackbone(backbone.model, backbone.tokenizer, other)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'][0]['text'] }}", "once and then the prompt"),
        ("{{ messages[0]['content'][0]['text'] }}<image>", "once and then the prompt"),
        ("<image>", "once and then the prompt"),
    ],
)
def test_a_chat_template_without_the_image_is_refused(
    backbone: LlavaNextBackbone, template: str | None, reason: str
) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=reason):
        LlavaNextBackbone(backbone.model, tokenizer, backbone.transform)
