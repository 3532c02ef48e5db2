"""Names of backbones: `model_type` of a checkpoint's config.json to the class that reads it."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

import torch
from transformers import PreTrainedConfig

from fk_reward.models import resolve_model
from fk_reward.rewards.hub_paths import model_source
from fk_reward.rewards.llava_reward.backbone import Backbone

BACKBONES: dict[str, str] = {
    "phi3_v": "fk_reward.rewards.llava_reward.phi3_vision:PhiVisionBackbone",
    "qwen2_5_vl": "fk_reward.rewards.llava_reward.qwen2_5_vl:QwenVLBackbone",
    "llava_next": "fk_reward.rewards.llava_reward.llava_next:LlavaNextBackbone",
}
"""`model_type` -> "module:class" of a `Backbone`. A new backbone joins by one line."""


def backbone_class(path: str | os.PathLike[str], *, revision: str = "main") -> type[Backbone]:
    """Find the class for an embedded model, hub repository or folder by its config.json; nothing else is read.

    Raises:
        OSError: when there is no config.json.
        ValueError: when its `model_type` is not one of `BACKBONES`.
    """
    path = model_source(path, "a backbone")
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if not config:  # what transformers gives for a folder without the file
        raise FileNotFoundError(f"{path} has no config.json: expected the folder of a multimodal LLM, or a hub id.")
    model_type = config.get("model_type")
    if model_type not in BACKBONES:
        raise ValueError(
            f"{path}: model_type is {model_type!r}; backbones of LLaVA-Reward have one of {', '.join(BACKBONES)}."
        )
    module, _, name = BACKBONES[model_type].partition(":")
    return getattr(importlib.import_module(module), name)


def load_backbone(
    path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    revision: str = "main",
    **options: Any,
) -> Backbone:
    """Load a frozen backbone from a hub repository or folder, by transformers' own loading.

    Args:
        path: name of an embedded model ("shapes-mllm"), hub id or folder; with config.json, tokenizer and safetensors,
            sharded or not.
        torch_dtype: floating dtype of the weights; the official code uses bfloat16.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        quantization_config: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        options: preprocessing options of this backbone (`num_crops` of Phi-3.5-vision; `min_pixels` and `max_pixels`
            of Qwen2.5-VL); None stands for the backbone's default.

    Raises:
        OSError: when files are missing.
        TypeError: for an option that this backbone does not have.
        ValueError: when the checkpoint is of another kind, or weights are missing from it.
    """
    path = resolve_model(path)
    cls = backbone_class(path, revision=revision)
    known = default_options(cls).keys()
    given = {name: value for name, value in options.items() if value is not None}
    if not given.keys() <= known:
        raise TypeError(
            f"{cls.__name__} has no option {', '.join(sorted(given.keys() - known))}; "
            f"its options: {', '.join(sorted(known)) or 'none'}."
        )
    return cls.from_pretrained(  # type: ignore[attr-defined]
        path,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        quantization_config=quantization_config,
        revision=revision,
        **given,
    )


def default_options(cls: type[Backbone]) -> dict[str, Any]:
    """The preprocessing options of a backbone: what its `from_pretrained` takes besides `load_backbone`'s own.

    Example:
        >>> from fk_reward.rewards.llava_reward.phi3_vision import PhiVisionBackbone
        >>> default_options(PhiVisionBackbone)
        {'num_crops': 16}
    """
    own = inspect.signature(cls.from_pretrained).parameters  # type: ignore[attr-defined]
    shared = inspect.signature(load_backbone).parameters
    return {name: parameter.default for name, parameter in own.items() if name not in shared}
