"""LLaVA-Rewards that the official code trained as a whole (`--lora_rank 0`): a model with the head in its own files.

`save_model` in llava_reward/utils/deepspeed.py of github.com/sjz5202/LLaVA-Reward writes such a folder: config.json,
tokenizer, and the weights of backbone, projector, SkipCA and value head together. Its own weights are the backbone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fk_reward.rewards.llava_reward.bradley_terry import BRADLEY_TERRY
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.general_preference import GENERAL_PREFERENCE
from fk_reward.rewards.llava_reward.official_checkpoint import (
    SKIP_CA_NAMES,
    VALUE_HEAD_NAMES,
    YAML_FILE,
    official_layout,
)

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILES = ("model.safetensors", "pytorch_model.bin")
_VALUE_HEAD = "value_head.weight"


def is_full_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a whole model with a value head.

    Example:
        >>> is_full_checkpoint("nowhere")
        False
    """
    folder = Path(folder)
    # A folder with this file holds an adapter, whose tensors are in a file of the same name.
    if (folder / YAML_FILE).is_file() or not (folder / "config.json").is_file():
        return False
    return _VALUE_HEAD in _files_by_name(folder)


def load_full_checkpoint(folder: str | os.PathLike[str], *, backbone: str, dimension: str) -> RewardCheckpoint:
    """Read the head of a fully fine-tuned reward; its backbone is loaded from the same folder.

    The folder names no settings of the training. Those that decide how the outputs are read follow from the tensors: a
    value head of one row is Bradley-Terry, one of several a general preference; a SkipCA is there if its tensors are.
    The temperature is the official code's default, 0.1.

    Args:
        folder: the folder.
        backbone: a name of `BACKBONES`.
        dimension: what the reward judges; the files do not name it.

    Raises:
        ValueError: when tensors of the head are absent, or the official code has no such reward on this backbone.
    """
    folder = Path(folder)
    files = _files_by_name(folder)
    layout = official_layout(backbone)
    cross_attention = any(name in files for name in SKIP_CA_NAMES)
    if cross_attention and layout.attends_to is None:
        raise ValueError(f"{folder} has a SkipCA, but the official code has none for {backbone}.")
    names = VALUE_HEAD_NAMES | (SKIP_CA_NAMES if cross_attention else {})
    if missing := sorted(names.keys() - files.keys()):
        raise ValueError(f"{folder} lacks {', '.join(missing)}.")
    head = {ours: files[name](name) for name, ours in names.items()}
    outputs = len(head[VALUE_HEAD_NAMES[_VALUE_HEAD]])
    config = LlavaRewardConfig(
        dimension=dimension,
        backbone=backbone,
        base_model=str(folder),
        objective=BRADLEY_TERRY.name if outputs == 1 else GENERAL_PREFERENCE.name,
        value_head_dim=outputs,
        cross_attention=cross_attention,
        attends_to=layout.attends_to if cross_attention and layout.attends_to else "visual",
        temperature=0.1,
        backbone_options=dict(layout.options),
    )
    return RewardCheckpoint(config, lora_config=None, lora={}, projector={}, head=head)


def _files_by_name(folder: Path) -> Mapping[str, Callable[[str], Tensor]]:
    """Name of each tensor -> what reads it; only the tensors that are asked for are read."""
    for index in _INDEXES:
        if (folder / index).is_file():
            places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            return {name: _reader(folder / file) for name, file in places.items()}
    for file in _FILES:
        if (folder / file).is_file():
            return dict.fromkeys(_names(folder / file), _reader(folder / file))
    return {}


def _names(file: Path) -> list[str]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            return list(content.keys())
    return list(_mapped(file))


def _reader(file: Path) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        if file.suffix != ".safetensors":
            return _mapped(file)[name].clone()
        with safe_open(file, framework="pt") as content:
            return content.get_tensor(name)

    return read


def _mapped(file: Path) -> Mapping[str, Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # mapped: gigabytes stay on the disk
