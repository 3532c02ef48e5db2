"""Backbones and checkpoints from files: found in a folder, on the hub or in the package, and in memory only once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch

from fk_reward.models import file_state, model_source
from fk_reward.rewards.llava_reward.backbones.base import backbone_spec, backbone_specs, load_backbone
from fk_reward.rewards.llava_reward.checkpoint import (
    ADAPTER_FOLDER,
    CONFIG_FILE,
    LORA_CONFIG_FILE,
    TENSORS_FILE,
    RewardCheckpoint,
    load_own_checkpoint,
    read_config,
    read_lora_config,
    require_files,
)
from fk_reward.rewards.llava_reward.full_checkpoint import is_full_checkpoint, load_full_checkpoint
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.official_checkpoint import (
    LORA_FOLDER,
    YAML_FILE,
    download_official,
    find_official_folder,
    load_official_checkpoint,
)
from fk_reward.rewards.noise_bands import band_folders

Adapter: TypeAlias = "str | os.PathLike[str]"
"""Name of an embedded adapter, folder or hub id of a checkpoint."""

Bands: TypeAlias = "Adapter | Sequence[Adapter]"
"""A checkpoint of a noise band, a folder or hub id with several of them directly below it, or a list of such."""

_DIMENSION = 'dimension="alignment" (or "fidelity", "safety", "overall")'
"""The argument that an official checkpoint needs, as a user types it."""


def read_checkpoint(
    adapter: Adapter, *, backbone: str, dimension: str | None, revision: str = "main"
) -> RewardCheckpoint:
    """Read a checkpoint of either format.

    Args:
        adapter: the name of an embedded adapter; a folder in our format; an official folder, or one that has it
            somewhere below; the folder of an official reward that was fine-tuned as a whole; a hub id of the first two.
        backbone: `model_type` of the backbone.
        dimension: which dimension; None only for our format, which holds one.
        revision: branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: when there is no checkpoint; the message says which files were expected.
        ValueError: when the checkpoint is of another dimension, or `dimension` is required but None.
    """
    folder = _own_folder(adapter, revision=revision)
    if folder is not None:
        return _of_dimension(load_own_checkpoint(folder), dimension, adapter)
    if dimension is None:
        raise ValueError(f"{_missing_names(adapter)}: pass {_DIMENSION}.")
    if is_full_checkpoint(adapter):
        return load_full_checkpoint(adapter, backbone=backbone, dimension=dimension)
    folder = _official_folder(adapter, backbone=backbone, dimension=dimension, revision=revision)
    base_model = backbone_spec(backbone).hub_id
    return load_official_checkpoint(folder, backbone=backbone, dimension=dimension, base_model=base_model)


def check_before_loading(adapter: Adapter, *, dimension: str | None, revision: str = "main") -> None:
    """Refuse what the small files of a checkpoint show to be wrong, before a backbone is loaded for it.

    Args:
        adapter: as for `read_checkpoint`.
        dimension: as for `read_checkpoint`.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ValueError: an official checkpoint without a dimension, or an adapter that is not plain LoRA.
    """
    folder = _own_folder(adapter, revision=revision)
    if folder is None and dimension is None:
        raise ValueError(f"{_missing_names(adapter)}: pass {_DIMENSION}.")
    lora = Path(adapter) / LORA_FOLDER if folder is None else folder / ADAPTER_FOLDER
    if (lora / LORA_CONFIG_FILE).is_file():
        read_lora_config(lora)


def base_model_of(adapter: Adapter, *, revision: str = "main") -> str:
    """The backbone that a checkpoint in our format names; of a fully fine-tuned reward, its own folder.

    Raises:
        ValueError: when it is in the official format of adapters, which does not name one.
    """
    folder = _own_folder(adapter, revision=revision)
    if folder is None and is_full_checkpoint(adapter):
        return os.fspath(adapter)
    if folder is None:
        known = ", ".join(repr(spec.hub_id) for spec in backbone_specs().values())
        raise ValueError(
            f"{_missing_names(adapter)}: pass backbone=<hub id or folder, such as {known}> and {_DIMENSION}."
        )
    require_files(folder, [CONFIG_FILE, TENSORS_FILE])  # before a backbone is loaded for it
    return read_config(folder / CONFIG_FILE).base_model


def options_of(adapter: Adapter, *, backbone: str, revision: str = "main") -> dict[str, Any]:
    """Preprocessing that a checkpoint in our format was trained with; nothing for one of another format or backbone.

    Args:
        adapter: as for `read_checkpoint`.
        backbone: `model_type` of the backbone.
        revision: branch, tag or commit of a hub repository.
    """
    folder = _own_folder(adapter, revision=revision)
    config = None if folder is None else read_config(folder / CONFIG_FILE)
    return dict(config.backbone_options) if config is not None and config.backbone == backbone else {}


def read_initial(adapter: Adapter, *, backbone: str, dimension: str, revision: str = "main") -> RewardCheckpoint:
    """Read a checkpoint that another training begins with: of our format whatever it judges, else that of a dimension.

    Args:
        adapter: as for `read_checkpoint`.
        backbone: `model_type` of the backbone.
        dimension: which one of an official checkpoint; a noise band behind an "@" is left out.
        revision: branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: when there is no checkpoint.
        ValueError: for one of another backbone.
    """
    own = _own_folder(adapter, revision=revision) is not None
    asked = None if own else dimension.partition("@")[0]
    checkpoint = read_checkpoint(adapter, backbone=backbone, dimension=asked, revision=revision)
    if checkpoint.config.backbone != backbone:
        raise ValueError(f"{adapter} is for backbone {checkpoint.config.backbone!r}, this one is {backbone!r}.")
    return checkpoint


def _missing_names(adapter: Adapter) -> str:
    """Beginning of an error about a checkpoint that is not in our format: what it is, and what it does not name."""
    is_official = (Path(adapter) / YAML_FILE).is_file()
    kind = f"is in the official format ({YAML_FILE})" if is_official else f"has no {CONFIG_FILE}"
    return f"{adapter} {kind}, which names neither its backbone nor its dimension"


def _of_dimension(checkpoint: RewardCheckpoint, dimension: str | None, adapter: Adapter) -> RewardCheckpoint:
    if dimension not in (None, checkpoint.config.dimension):
        raise ValueError(f"{adapter} holds dimension {checkpoint.config.dimension!r}, not {dimension!r}.")
    return checkpoint


def _own_folder(adapter: Adapter, *, revision: str) -> Path | None:
    adapter = model_source(adapter, "a checkpoint")
    folder = Path(adapter)
    if folder.is_dir():
        return folder if (folder / CONFIG_FILE).is_file() else None
    from huggingface_hub import file_exists, snapshot_download

    if not file_exists(adapter, CONFIG_FILE, revision=revision):
        return None
    return Path(snapshot_download(adapter, revision=revision))


def _official_folder(adapter: Adapter, *, backbone: str, dimension: str, revision: str) -> Path:
    root = Path(adapter)
    if not root.is_dir():
        return download_official(str(adapter), backbone=backbone, dimension=dimension, revision=revision)
    if (root / YAML_FILE).is_file():
        return root
    files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    return root / find_official_folder(files, backbone=backbone, dimension=dimension)


def attach_adapter(
    model: LlavaRewardModel, adapter: Adapter, *, dimension: str | None, revision: str = "main"
) -> tuple[str, str]:
    """Attach a checkpoint to a model, unless it is attached already; return its dimension and its key.

    Args:
        model: the network.
        adapter: folder or hub repository.
        dimension: its dimension; None for what a checkpoint in our format says.
        revision: branch, tag or commit of a hub repository.

    Raises:
        OSError: when files are missing.
        ValueError: when the checkpoint does not fit; it says in what.
    """
    # `file_state` changes with the files: a checkpoint that was trained further is not the attached one.
    source = f"{file_state(adapter)}|{dimension}|{revision}"
    if is_full_checkpoint(adapter) and model.origin != file_state(adapter):
        raise ValueError(
            f"{adapter} was fine-tuned as a whole: its own weights are its backbone. Load it by itself, without "
            "backbone=."
        )
    if source not in model.sources:
        checkpoint = read_checkpoint(
            adapter, backbone=model.backbone.model_type, dimension=dimension, revision=revision
        )
        key = free_key(checkpoint.config.dimension, model.configs)
        model.attach(key, checkpoint)
        model.sources[source] = key
    key = model.sources[source]
    return model.configs[key].dimension, key


def attach_bands(model: LlavaRewardModel, bands: Bands, *, revision: str = "main") -> tuple[str, ...]:
    """Attach checkpoints of noise bands, in our format, and return their keys.

    Args:
        model: the network.
        bands: see `Bands`.
        revision: branch, tag or commit of a hub repository.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a checkpoint of no band, or one that does not fit the backbone.
    """
    sources = [bands] if isinstance(bands, str | os.PathLike) else list(bands)
    keys = []
    for folder in (folder for source in sources for folder in _bands_in(source, revision=revision)):
        config = read_config(folder / CONFIG_FILE)
        if config.band is None:
            raise ValueError(
                f"{folder} holds {config.dimension!r}, an adapter for finished images: expected one for a noise band, "
                f"such as {config.dimension}@0.5."
            )
        keys.append(attach_adapter(model, folder, dimension=None)[1])
    return tuple(keys)


def _bands_in(source: Adapter, *, revision: str) -> list[Path]:
    found = Path(model_source(source, "noise bands"))
    if not found.is_dir():
        from huggingface_hub import snapshot_download

        found = Path(snapshot_download(os.fspath(source), revision=revision))
    return band_folders(found, CONFIG_FILE)


def free_key(dimension: str, taken: Mapping[str, Any]) -> str:
    """A key for a dimension that is not taken yet; without dots, which the names of modules may not have.

    Example:
        >>> free_key("safety", {"safety": ..., "safety-2": ...}), free_key("alignment@0.5", {})
        ('safety-3', 'alignment@0_5')
    """
    dimension, number = dimension.replace(".", "_"), 1
    while (key := dimension if number == 1 else f"{dimension}-{number}") in taken:
        number += 1
    return key


_MODELS: WeakValueDictionary[tuple[str, ...], LlavaRewardModel] = WeakValueDictionary()


def shared_model(
    path: str | os.PathLike[str],
    *,
    torch_dtype: torch.dtype,
    offload: bool,
    settings: Mapping[str, Any],
    private: bool = False,
) -> LlavaRewardModel:
    """Load a backbone, or return the one that another reward with the same settings holds.

    A model lives as long as a reward holds it. Rewards that share one move together; once one of them has moved it to
    another dtype, the model is no longer shared.

    Args:
        path: name of an embedded model, hub id or folder.
        torch_dtype: floating dtype of the weights.
        offload: whether the weights stay on the CPU between calls; such rewards share only among themselves.
        settings: the other keyword arguments of `load_backbone`.
        private: load one that no other reward will hold.
    """
    key = (file_state(path), str((torch_dtype, offload)), *(f"{name}={settings[name]!r}" for name in sorted(settings)))
    # Weak values: with the last reward, the gigabytes are freed, too. The dtype may have changed since (`to`).
    model = None if private else _MODELS.get(key)
    if model is None or model.backbone.dtype != torch_dtype:
        model = LlavaRewardModel(load_backbone(path, torch_dtype=torch_dtype, **settings))
        model.origin = file_state(path)
        if not private:
            _MODELS[key] = model
    return model
