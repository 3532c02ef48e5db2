"""CLIP-FlanT5 from the files of `zhiqiulin/clip-flant5-xl` and `-xxl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, CLIPVisionConfig, PreTrainedConfig, T5Config

from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.vqascore.clip_t5 import ClipT5, ClipT5Processor
from fk_reward.rewards.weights import WRAPPED_NAMES, check_complete

_SETTINGS = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"}
"""What the published checkpoints have, and the only thing that is read."""

_NAMES = {r"^vision_tower\.vision_tower\.(vision_model\.)?": "vision_tower."}
"""Names of the files -> names of `ClipT5`."""


def is_clip_t5(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is that of a CLIP-FlanT5, which calls itself "t5" on the hub.

    Example:
        >>> is_clip_t5({"model_type": "t5"}), is_clip_t5({"model_type": "t5", "mm_vision_tower": "openai/clip"})
        (False, True)
    """
    return config.get("model_type") in ("t5", "clip_t5") and "mm_vision_tower" in config


def load_clip_t5(path: str, *, revision: str = "main", **options: Any) -> tuple[ClipT5, ClipT5Processor]:
    """Load model and tokenizer, and the settings of the CLIP tower that the configuration names.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.
        options: as in `PreTrainedModel.from_pretrained`.

    Raises:
        OSError: when files are missing.
        ValueError: for another projector than the published one, or a checkpoint that lacks weights.
    """
    config, vision = _read_config(path, revision=revision)
    model, info = ClipT5.from_pretrained(
        path,
        config=config,
        revision=revision,
        key_mapping={**WRAPPED_NAMES, **_NAMES},
        output_loading_info=True,
        **options,
    )
    check_complete(path, info)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    if len(tokenizer) < config.vocab_size:  # the official code cuts the rows that no token has, before any softmax
        model.resize_token_embeddings(len(tokenizer))
    pixels = ImagePreprocessing.from_pretrained(config.mm_vision_tower)
    num_patches = (vision.image_size // vision.patch_size) ** 2
    return model, ClipT5Processor(tokenizer, pixels, num_patches=num_patches)


def _read_config(path: str, *, revision: str) -> tuple[T5Config, CLIPVisionConfig]:
    raw, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for name, expected in _SETTINGS.items():
        if raw.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} must be {expected!r}, got {raw[name]!r}.")
    vision = CLIPVisionConfig.from_pretrained(raw["mm_vision_tower"])
    settings = {"mm_vision_select_layer": -2, **raw, "model_type": "t5", "mm_vision_config": vision.to_dict()}
    return T5Config.from_dict(settings), vision
