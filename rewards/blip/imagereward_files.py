"""Files of ImageReward: the authors' `ImageReward.pt`, and a folder of our own with the same tensors as safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fk_reward.documents import parse_json
from fk_reward.models import resolve_model
from fk_reward.rewards.blip.imagereward_model import ImageRewardModel
from fk_reward.rewards.blip.imagereward_names import match_tensors, official_name
from fk_reward.rewards.blip.imagereward_sizes import ImageRewardSizes
from fk_reward.rewards.hub_paths import check_source
from fk_reward.rewards.state_dicts import read_state_dict, unwrapped_names

OFFICIAL_FILE = "ImageReward.pt"
OFFICIAL_TOKENIZER = "google-bert/bert-base-uncased"
CONFIG_FILE = "imagereward.json"
TENSORS_FILE = "imagereward.safetensors"


@dataclass(frozen=True, kw_only=True)
class ImageRewardConfig:
    """What the tensors do not say. The defaults are those of the authors' code.

    Attributes:
        head_size: width of the attention heads of both towers; 64 in every BLIP.
        max_tokens: number of tokens that are read of a prompt, special ones included.
        mean: mean of the raw scores over the authors' data.
        std: their standard deviation; a score is (raw - mean) / std.

    Raises:
        ValueError: for a number that is not positive; `mean` may be any.

    Example:
        >>> ImageRewardConfig(head_size=32, max_tokens=16).mean
        0.16717362830052426
    """

    head_size: int = 64
    max_tokens: int = 35
    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072

    def __post_init__(self) -> None:
        for field in ("head_size", "max_tokens", "std"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}.")

    @classmethod
    def read(cls, path: Path) -> ImageRewardConfig:
        """Read the JSON file; an unknown or missing key raises a ValueError."""
        settings: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), path)
        names = {field.name for field in dataclasses.fields(cls)}
        if set(settings) != names:
            raise ValueError(f"{path} must have the keys {sorted(names)}, got {sorted(settings)}.")
        return cls(**settings)


@dataclass(frozen=True)
class ImageRewardFiles:
    """Where everything is.

    Attributes:
        tensors: a file with the official names.
        config: what the tensors do not say.
        tokenizer: folder or hub id of the tokenizer.
    """

    tensors: Path
    config: ImageRewardConfig
    tokenizer: str


def find_files(weights: str | os.PathLike[str], *, revision: str = "main") -> ImageRewardFiles:
    """Find the files of an ImageReward.

    Args:
        weights: the file `ImageReward.pt` (or its tensors as safetensors), a folder with it, a folder in our format,
            the name of an embedded model, or a hub id, from which `ImageReward.pt` is taken.
        revision: branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: when there is no such file, or neither kind of file in the folder.
        ValueError: when the configuration of a folder cannot be read.
    """
    path = Path(resolve_model(weights))
    if path.suffix in (".pt", ".safetensors") and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file of ImageReward.")
        return ImageRewardFiles(path, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    check_source(path, "ImageReward")
    if not path.is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(path.as_posix(), OFFICIAL_FILE, revision=revision))
        return ImageRewardFiles(file, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    if (path / CONFIG_FILE).is_file():
        return ImageRewardFiles(path / TENSORS_FILE, ImageRewardConfig.read(path / CONFIG_FILE), str(path))
    if (path / OFFICIAL_FILE).is_file():
        return ImageRewardFiles(path / OFFICIAL_FILE, ImageRewardConfig(), OFFICIAL_TOKENIZER)
    raise FileNotFoundError(f"{path} holds no ImageReward: expected {OFFICIAL_FILE} or {CONFIG_FILE} in it.")


def read_model(path: Path, *, head_size: int = 64, dtype: torch.dtype = torch.float32) -> ImageRewardModel:
    """Build the network that a file of tensors holds; its sizes are read from them.

    Args:
        path: `ImageReward.pt`, or the same tensors as safetensors. Pickles are read with `weights_only=True`.
        head_size: width of the attention heads, which no tensor shows.
        dtype: of the weights, whatever the file has.

    Raises:
        ValueError: when the file is damaged, or its tensors are not exactly those of an ImageReward.
    """
    tensors = _read_tensors(path)
    try:
        with init_empty_weights():
            model = ImageRewardModel(ImageRewardSizes.from_state_dict(tensors), head_size=head_size)
        matched = match_tensors(tensors, model.state_dict())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in matched.items()}, assign=True)
    return model


def write_model(folder: Path, model: ImageRewardModel, config: ImageRewardConfig) -> None:
    """Write tensors, with the official names and in their present dtype, and configuration; the tokenizer is apart."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {official_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    text = json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_state_dict(path)
    try:
        return unwrapped_names(load_file(path), source=path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
