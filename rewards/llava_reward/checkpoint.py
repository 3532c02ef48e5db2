"""Checkpoints of LLaVA-Reward in memory and in our own format, which holds no pickles."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fk_reward.documents import parse_json
from fk_reward.durable_files import write_whole
from fk_reward.rewards.llava_reward.adapters import check_lora_settings
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.head import RewardHead
from fk_reward.rewards.weights import unwrapped_names

CONFIG_FILE = "reward_config.json"
TENSORS_FILE = "reward.safetensors"
ADAPTER_FOLDER = "adapter"
LORA_CONFIG_FILE = "adapter_config.json"
LORA_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the names of the language model's modules."""


class CheckpointMismatchError(ValueError):
    """A checkpoint is intact, but of another reward than the one that it should be put into."""


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class RewardCheckpoint:
    """One dimension of LLaVA-Reward: all that is trained, and what it means.

    Leave `lora`, `projector` or `head` empty for what starts untrained. Without LoRA weights or head, a checkpoint
    cannot be saved.

    Attributes:
        config: what the weights do not say.
        lora_config: PEFT's description of the adapter; None for a reward without LoRA.
        lora: weights of the adapter, named from the language model on ("layers.0.self_attn.o_proj.lora_A.weight").
        projector: state dict of the visual projector; empty when the base model's own is used.
        head: state dict of the `RewardHead`.

    Raises:
        ValueError: when tensors are absent, not expected or of sizes that contradict the configuration.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> config = LlavaRewardConfig(dimension="safety", backbone="phi3_v", base_model="tiny", cross_attention=False)
        >>> checkpoint = RewardCheckpoint(config, None, {}, {}, {"value_head.weight": torch.ones(1, 4)})
        >>> with TemporaryDirectory() as folder:
        ...     load_own_checkpoint(checkpoint.save(folder)).head
        {'value_head.weight': tensor([[1., 1., 1., 1.]])}
    """

    config: LlavaRewardConfig
    lora_config: LoraConfig | None
    lora: dict[str, Tensor]
    projector: dict[str, Tensor]
    head: dict[str, Tensor]

    def __post_init__(self) -> None:
        if self.lora and self.lora_config is None:
            raise ValueError("There are LoRA weights, but no lora_config that says their rank and scale.")
        if self.lora and self.lora_config is not None:
            _check_lora(self.lora, self.lora_config)
        if self.head:
            _check_head(self.head, self.config)

    @property
    def lora_modules(self) -> list[str]:
        """Sorted full names of the modules that the adapter changes."""
        return sorted({_lora_module(key) for key in self.lora})

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `adapter/` in the layout of PEFT, `reward.safetensors` and, last, `reward_config.json`.

        Tensors keep their values and dtypes. An older checkpoint in the folder is replaced; one whose writing was
        interrupted has no `reward_config.json` and does not load.

        Args:
            folder: where to; made if need be.
            overwrite: also write into a folder that holds other things; they are left alone.

        Returns:
            The folder.

        Raises:
            FileExistsError: the folder holds something that is not a checkpoint and `overwrite` is False.
            NotADirectoryError: it is a file.
            ValueError: when the head or the LoRA weights are empty.
        """
        if not self.head or (self.lora_config is not None and not self.lora):
            raise ValueError("The checkpoint has no weights yet: its head or its LoRA is empty.")
        folder = accepted_folder(Path(folder), overwrite=overwrite)
        # The config goes first and comes back last: a folder without it does not load, so that a crash in between
        # leaves no mixture of two checkpoints.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        self._save_adapter(folder / ADAPTER_FOLDER)
        tensors = {f"head.{key}": tensor for key, tensor in self.head.items()}
        tensors |= {f"projector.{key}": tensor for key, tensor in self.projector.items()}
        # One entry only: safetensors writes several in any order, and the same weights should give the same bytes.
        metadata = {"adapter": "none" if self.lora_config is None else "lora"}
        _save_tensors(tensors, folder / TENSORS_FILE, metadata=metadata)
        write_whole(folder / CONFIG_FILE, self.config.to_json())
        return folder

    def _save_adapter(self, folder: Path) -> None:
        # Also where nothing is written: the adapter of an older checkpoint must not stay beside a newer head.
        for name in (LORA_CONFIG_FILE, LORA_FILE):
            (folder / name).unlink(missing_ok=True)
        if self.lora_config is None:
            return
        lora_config = copy.deepcopy(self.lora_config)
        lora_config.target_modules = self.lora_modules  # a sorted list: PEFT would write its set in any order
        lora_config.base_model_name_or_path = self.config.base_model
        lora_config.save_pretrained(str(folder))
        tensors = {PEFT_PREFIX + key: tensor for key, tensor in self.lora.items()}
        _save_tensors(tensors, folder / LORA_FILE, metadata={"format": "pt"})


def load_own_checkpoint(folder: str | os.PathLike[str]) -> RewardCheckpoint:
    """Read what `RewardCheckpoint.save` wrote.

    Raises:
        FileNotFoundError: when files are absent; it says which.
        ValueError: when a file is damaged or does not fit the others; it says in what.

    Example:
        >>> load_own_checkpoint("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: nowhere lacks reward_config.json, reward.safetensors; it is not a folder.
    """
    folder = Path(folder)
    require_files(folder, [CONFIG_FILE, TENSORS_FILE])
    config = read_config(folder / CONFIG_FILE)
    tensors, metadata = read_safetensors(folder / TENSORS_FILE)
    if metadata.get("adapter") not in ("none", "lora"):
        raise ValueError(f"{folder / TENSORS_FILE} does not say whether there is an adapter; was it written by save?")
    lora_config, lora = (None, {}) if metadata["adapter"] == "none" else _read_adapter(folder)
    parts = {part: _with_prefix(tensors, f"{part}.") for part in ("head", "projector")}
    if not parts["head"] or len(parts["head"]) + len(parts["projector"]) != len(tensors):
        raise ValueError(f"{folder / TENSORS_FILE} must hold head.* and projector.* only, got {sorted(tensors)[:8]}.")
    try:
        return RewardCheckpoint(config, lora_config, lora, **parts)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def require_files(folder: Path, names: list[str]) -> None:
    """Check that files are there.

    Raises:
        FileNotFoundError: it names all that are absent, and what the folder holds instead.

    Example:
        >>> require_files(Path("nowhere"), ["a.json"])
        Traceback (most recent call last):
        FileNotFoundError: nowhere lacks a.json; it is not a folder.
    """
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else None
        there = "it is not a folder" if held is None else f"it holds {', '.join(held) or 'nothing'}"
        raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}; {there}.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file onto the CPU, under their names without wrappers, and its metadata.

    Raises:
        ValueError: when the file is damaged, or holds two tensors of one name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_file({"x": torch.zeros(2)}, Path(folder, "x.safetensors"), metadata={"format": "pt"})
        ...     read_safetensors(Path(folder, "x.safetensors"))
        ({'x': tensor([0., 0.])}, {'format': 'pt'})
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return unwrapped_names(tensors, source=path), metadata


def read_lora_config(folder: Path) -> LoraConfig:
    """Read `adapter_config.json` with PEFT's own function, which knows the keys of its older and newer versions.

    Raises:
        FileNotFoundError: when it is absent.
        ValueError: when it is damaged, describes something other than LoRA, or has settings that change the backbone
            or the layers that it is added to (`check_lora_settings`).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     LoraConfig(r=4).save_pretrained(folder)
        ...     read_lora_config(Path(folder)).r
        4
    """
    require_files(folder, [LORA_CONFIG_FILE])  # PEFT looks on the hub for a file that the folder lacks
    try:
        _check_settings(folder / LORA_CONFIG_FILE)  # before PEFT, which acts on some of them while it reads
        config = LoraConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / LORA_CONFIG_FILE}: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder / LORA_CONFIG_FILE} describes {config.peft_type}, expected LoRA.")
    return config


def _check_settings(path: Path) -> None:
    settings = parse_json(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(settings, dict):
        raise ValueError(f"expected a JSON object, got {type(settings).__name__}.")
    if settings.get("peft_type", "LORA") == "LORA":  # other kinds have other settings; the caller refuses them
        check_lora_settings(settings)


def read_config(path: Path) -> LlavaRewardConfig:
    """Read a `reward_config.json`.

    Raises:
        ValueError: when it is damaged; it says which file.
    """
    try:
        return LlavaRewardConfig.from_json(path.read_text(encoding="utf-8"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    require_files(folder, [f"{ADAPTER_FOLDER}/{name}" for name in (LORA_CONFIG_FILE, LORA_FILE)])
    path = folder / ADAPTER_FOLDER / LORA_FILE
    tensors, _ = read_safetensors(path)
    lora = _with_prefix(tensors, PEFT_PREFIX)
    if not lora or len(lora) != len(tensors):
        raise ValueError(f"{path}: all keys must begin with {PEFT_PREFIX!r}, got {sorted(tensors)[:4]}.")
    return read_lora_config(folder / ADAPTER_FOLDER), lora


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    try:
        save_file(copies, path, metadata=metadata)
    except SafetensorError as error:  # also of a full disk; it does not name the file
        raise OSError(f"{path} cannot be written: {error}") from error


def accepted_folder(folder: Path, *, overwrite: bool = False) -> Path:
    """Make the folder of a checkpoint, unless it holds something else.

    Args:
        folder: where to.
        overwrite: accept a folder that holds other things.

    Raises:
        FileExistsError: the folder holds something that is not a checkpoint and `overwrite` is False.
        NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose a folder for the checkpoint.")
    folder.mkdir(parents=True, exist_ok=True)
    held = {entry.name for entry in folder.iterdir()}
    # With a config in it, the folder is a checkpoint, whatever a Trainer put beside it.
    foreign = sorted(held - {CONFIG_FILE, TENSORS_FILE, ADAPTER_FOLDER})
    if foreign and CONFIG_FILE not in held and not overwrite:
        raise FileExistsError(
            f"{folder} is not a checkpoint, but holds {', '.join(foreign[:4])}; choose another folder."
        )
    return folder


def _lora_module(key: str) -> str:
    return key.partition(".lora_")[0]


def _check_lora(lora: Mapping[str, Tensor], config: LoraConfig) -> None:
    for module in sorted({_lora_module(key) for key in lora}):
        names = [f"{module}.lora_{matrix}.weight" for matrix in "AB"]
        if missing := [name for name in names if name not in lora]:
            raise ValueError(f"LoRA: {', '.join(missing)} is missing.")
        ranks = (lora[names[0]].shape[0], lora[names[1]].shape[1])
        if ranks != (config.r, config.r) and not config.rank_pattern:  # a pattern gives modules their own ranks
            raise ValueError(f"LoRA: the matrices of {module} have ranks {ranks}, the configuration says {config.r}.")


def _check_head(head: Mapping[str, Tensor], config: LlavaRewardConfig) -> None:
    hidden_size = head["value_head.weight"].shape[-1] if "value_head.weight" in head else 1
    # Only names and shapes are read: nothing is allocated on the meta device, and eps does not matter.
    with torch.device("meta"):
        made = RewardHead(
            hidden_size, value_head_dim=config.value_head_dim, cross_attention=config.cross_attention, eps=1e-6
        )
    expected = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    if missing := sorted(expected.keys() - head.keys()):
        raise ValueError(f"Head: {', '.join(missing)} is missing (cross_attention={config.cross_attention}).")
    if unknown := sorted(head.keys() - expected.keys()):
        raise ValueError(f"Head: {', '.join(unknown)} is not expected (cross_attention={config.cross_attention}).")
    for key, shape in expected.items():
        if tuple(head[key].shape) != shape:
            raise ValueError(
                f"Head: {key} has shape {tuple(head[key].shape)}, expected {shape} for a language model of width "
                f"{hidden_size} and value_head_dim={config.value_head_dim}."
            )
