"""A LLaVA-Reward with random weights in the layout that its authors publish, for a tiny checkpoint of a backbone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_LANGUAGE_MODEL = {"phi3_v": "model.", "qwen2_5_vl": "model.", "llava_next": "language_model.model."}
_PROJECTOR = {"phi3_v": ".img_projection.", "qwen2_5_vl": ".merger.", "llava_next": "multi_modal_projector."}
_SUFFIXES = ["qkv_proj", "o_proj", "down_proj", "gate_up_proj"]
_LINEAR = r"layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.weight"


def write_official_reward(
    folder: Path,
    *,
    backbone: Path,
    model_type: str,
    seed: int = 0,
    rank: int = 4,
    is_general_preference: bool = False,
    value_head_dim: int = 1,
    add_cross_attention: bool | None = None,
    pickled_lora: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write the checkpoint and return its folder.

    `backbone` is a checkpoint with the hub's key names, which the official files use as well. `add_cross_attention` is
    by default what the official code can do: yes, but for LLaVA-NeXT. `pickled_lora` writes adapter_model.bin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights = _read_weights(backbone)
    if add_cross_attention is None:
        add_cross_attention = model_type != "llava_next"
    settings = {
        "general_preference_tau": 0.1,
        "value_head_dim": value_head_dim,
        "add_cross_attention": add_cross_attention,
        "is_general_preference": is_general_preference,
    }
    (folder / "reward_config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    linear = _adapted(weights, model_type)
    _write_lora_config(folder / "lora", list(linear), rank=rank, model_type=model_type)
    lora = _cast(_random_lora(linear, rank=rank, generator=generator), dtype)
    if pickled_lora:
        torch.save(lora, folder / "lora" / "adapter_model.bin")
    else:
        save_file(lora, folder / "lora" / "adapter_model.safetensors", metadata={"format": "pt"})
    width = next(shape[1] for key, shape in linear.items() if key.endswith(("q_proj", "qkv_proj")))
    head = _random_head(
        width, outputs=value_head_dim if is_general_preference else 1, cross=add_cross_attention, generator=generator
    )
    projector = {
        key: weight.float() + _normal(weight.shape, 0.1, generator)
        for key, weight in weights.items()
        if _PROJECTOR[model_type] in f".{key}"
    }
    torch.save(_cast(projector | head, dtype), folder / "pytorch_model.bin")
    return folder


def rewrite_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors of a file by what `change` makes of them."""
    if path.suffix == ".bin":
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        save_file(change(load_file(path)), path)


def _read_weights(backbone: Path) -> dict[str, Tensor]:
    weights = {}
    for path in sorted(backbone.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weights |= {key: file.get_tensor(key) for key in file.keys()}
    return weights


def _adapted(weights: dict[str, Tensor], model_type: str) -> dict[str, tuple[int, ...]]:
    """Full names of the language model's linear layers and the shapes of their weights."""
    pattern = re.compile(re.escape(_LANGUAGE_MODEL[model_type]) + _LINEAR)
    return {key.removesuffix(".weight"): tuple(w.shape) for key, w in weights.items() if pattern.fullmatch(key)}


def _write_lora_config(folder: Path, modules: list[str], *, rank: int, model_type: str) -> None:
    """Phi's configuration has suffixes, the others full names, as the official training code makes them."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        init_lora_weights="gaussian",
        target_modules=_SUFFIXES if model_type == "phi3_v" else modules,
        base_model_name_or_path="a folder of its authors",
    )
    config.save_pretrained(str(folder))


def _random_lora(linear: dict[str, tuple[int, ...]], *, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    lora = {}
    for module, (outputs, inputs) in linear.items():
        lora[f"base_model.model.{module}.lora_A.weight"] = _normal((rank, inputs), inputs**-0.5, generator)
        lora[f"base_model.model.{module}.lora_B.weight"] = _normal((outputs, rank), 0.2, generator)
    return lora


def _random_head(width: int, *, outputs: int, cross: bool, generator: torch.Generator) -> dict[str, Tensor]:
    std = width**-0.5
    head = {"value_head.weight": _normal((outputs, width), std, generator)}
    if cross:
        head |= {f"W_{letter}.weight": _normal((width, width), 2 * std, generator) for letter in "qkv"}
        head["ca_layernorm.weight"] = 1 + _normal((width,), 0.2, generator)
    return head


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, generator=generator)


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
