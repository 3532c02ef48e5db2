"""Reading the checkpoints that the authors of LLaVA-Reward publish.

A folder holds `reward_config.yaml`, `lora/` and `pytorch_model.bin`, in the layout of github.com/sjz5202/LLaVA-Reward:
`save_model_lora` in llava_reward/utils/deepspeed.py writes it, eval/reward_adaptor_loader.py reads it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from peft import LoraConfig
from torch import Tensor

from fk_reward.documents import parse_yaml
from fk_reward.rewards.llava_reward.backbones.base import OfficialLayout, backbone_specs
from fk_reward.rewards.llava_reward.binary import BINARY
from fk_reward.rewards.llava_reward.bradley_terry import BRADLEY_TERRY
from fk_reward.rewards.llava_reward.checkpoint import (
    LORA_CONFIG_FILE,
    LORA_FILE,
    RewardCheckpoint,
    read_lora_config,
    read_safetensors,
    require_files,
)
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.general_preference import GENERAL_PREFERENCE
from fk_reward.rewards.weights import read_state_dict

logger = logging.getLogger(__name__)

YAML_FILE = "reward_config.yaml"
TENSORS_FILE = "pytorch_model.bin"
LORA_FOLDER = "lora"
PICKLED_LORA_FILE = "adapter_model.bin"

_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "general_preference_tau": (int, float),
    "value_head_dim": int,
    "add_cross_attention": bool,
    "is_general_preference": bool,
}
SKIP_CA_NAMES = {  # official name -> that in the head
    "W_q.weight": "skip_ca.W_q.weight",
    "W_k.weight": "skip_ca.W_k.weight",
    "W_v.weight": "skip_ca.W_v.weight",
    "ca_layernorm.weight": "skip_ca.norm.weight",
}
VALUE_HEAD_NAMES = {"value_head.weight": "value_head.weight"}
_LORA_KEY = re.compile(
    r"(?:(?:module|base_model|model|language_model)\.)*(?P<module>layers\.\d+\..+)\.(?P<matrix>lora_[AB])(?:\.\w+)?\.weight"
)
"""A LoRA matrix of a language model below any wrappers; vision towers have other names before `layers`."""


def official_layouts() -> dict[str, OfficialLayout]:
    """The layouts of all backbones that have official checkpoints, by `model_type`.

    Example:
        >>> official_layouts()["qwen2_5_vl"].projector
        'merger'
    """
    return {name: spec.official for name, spec in backbone_specs().items() if spec.official is not None}


def official_layout(backbone: str) -> OfficialLayout:
    """The layout of one backbone's official checkpoints.

    Raises:
        ValueError: when the backbone has no official checkpoints.
    """
    layouts = official_layouts()
    if backbone not in layouts:
        raise ValueError(f"No official checkpoints are known for {backbone!r}, only for {', '.join(layouts)}.")
    return layouts[backbone]


def load_official_checkpoint(
    folder: str | os.PathLike[str],
    *,
    backbone: str,
    dimension: str,
    base_model: str,
    objective: str | None = None,
) -> RewardCheckpoint:
    """Read an official checkpoint onto the CPU, in the dtype of its files. Pickles are read with `weights_only=True`.

    Args:
        folder: the folder with `reward_config.yaml`.
        backbone: a name of `BACKBONES`; the files do not name it, but tensors of another backbone are refused.
        dimension: what the reward judges; the files do not name it.
        base_model: hub id or folder of the backbone.
        objective: "bradley-terry" or "binary", which `reward_config.yaml` does not tell apart; by default
            Bradley-Terry. A general preference is recognised; one with a single output was trained as binary.

    Returns:
        The checkpoint. Its `lora_config` names exactly the modules that are in the file: the official names are
        suffixes, which could also hit a vision tower.

    Raises:
        FileNotFoundError: when files are absent; it says which.
        ValueError: when settings or tensors are absent, of wrong types or sizes, or those of another backbone.

    Example:
        >>> load_official_checkpoint("nowhere", backbone="phi4", dimension="safety", base_model="tiny")
        Traceback (most recent call last):
        ValueError: No official checkpoints are known for 'phi4', only for phi3_v, qwen2_5_vl, llava_next.
    """
    folder = Path(folder)
    layout = official_layout(backbone)
    lora_file = LORA_FILE if (folder / LORA_FOLDER / LORA_FILE).is_file() else PICKLED_LORA_FILE
    lora_files = [f"{LORA_FOLDER}/{name}" for name in (LORA_CONFIG_FILE, lora_file)]
    require_files(folder, [YAML_FILE, TENSORS_FILE, *lora_files])
    lora = _read_lora(folder / LORA_FOLDER / lora_file)
    tensors = read_state_dict(folder / TENSORS_FILE)
    try:
        settings = _read_settings(folder / YAML_FILE)
        _check_backbone(backbone, lora, tensors)
        return RewardCheckpoint(
            _config(settings, backbone=backbone, dimension=dimension, base_model=base_model, objective=objective),
            _lora_config(folder / LORA_FOLDER, lora, base_model=base_model),
            lora,
            **_split(tensors, layout, cross_attention=settings["add_cross_attention"]),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _read_settings(path: Path) -> dict[str, Any]:
    settings = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} must be a mapping, got {settings!r}.")
    if missing := sorted(_SETTINGS.keys() - settings.keys()):
        raise ValueError(f"{path.name} lacks {', '.join(missing)}.")
    if unknown := sorted(str(key) for key in settings.keys() - _SETTINGS.keys()):
        logger.warning("%s: %s not read; the official code does not read them either.", path, ", ".join(unknown))
    for name, expected in _SETTINGS.items():
        value = settings[name]
        # bool is a subclass of int: True must not pass for a number.
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            kind = "number" if isinstance(expected, tuple) else expected.__name__
            raise ValueError(f"{path.name}: {name} must be of type {kind}, got {value!r}.")
    return settings


def _config(
    settings: Mapping[str, Any], *, backbone: str, dimension: str, base_model: str, objective: str | None
) -> LlavaRewardConfig:
    layout, cross_attention = official_layout(backbone), settings["add_cross_attention"]
    if cross_attention and layout.attends_to is None:
        raise ValueError(f"add_cross_attention is true, but the official code has no SkipCA for {backbone}.")
    attends_to = layout.attends_to if cross_attention and layout.attends_to else "visual"
    if attends_to == "nothing":
        logger.warning(
            "The official %s rewards select the padding token instead of the image token, so their SkipCA "
            "adds nothing for one image; the %s reward is loaded so as to reproduce that (attends_to='nothing').",
            backbone,
            dimension,
        )
    return LlavaRewardConfig(
        dimension=dimension,
        backbone=backbone,
        base_model=base_model,
        objective=_objective(settings, objective),
        value_head_dim=settings["value_head_dim"] if settings["is_general_preference"] else 1,
        cross_attention=cross_attention,
        attends_to=attends_to,
        temperature=settings["general_preference_tau"],
        backbone_options=dict(layout.options),
    )


def _objective(settings: Mapping[str, Any], asked: str | None) -> str:
    # Without a general preference, the official code ignores value_head_dim and has one output.
    if settings["is_general_preference"] and settings["value_head_dim"] != 1:
        possible = [GENERAL_PREFERENCE.name]
    elif settings["is_general_preference"]:
        possible = [BINARY.name]  # the official trainer then takes the cross-entropy of chosen = 1, rejected = 0
    else:
        possible = [BRADLEY_TERRY.name, BINARY.name]
    if asked is not None and asked not in possible:
        raise ValueError(f"objective must be {' or '.join(possible)} for this checkpoint, got {asked!r}.")
    return asked or possible[0]


def _read_lora(path: Path) -> dict[str, Tensor]:
    tensors = read_safetensors(path)[0] if path.name == LORA_FILE else read_state_dict(path)
    lora = {}
    for key, tensor in tensors.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{path}: {key} is not a LoRA matrix of the language model, the only part that is adapted."
            )
        lora[f"{match['module']}.{match['matrix']}.weight"] = tensor
    if len(lora) != len(tensors) or not lora:
        raise ValueError(f"{path} must hold one adapter, got {len(tensors)} tensors for {len(lora)} matrices.")
    return lora


def _lora_config(folder: Path, lora: Mapping[str, Tensor], *, base_model: str) -> LoraConfig:
    """The official configuration, with exact module names and without references to the authors' code."""
    config = read_lora_config(folder)
    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(config, name):
            raise ValueError(f"{LORA_CONFIG_FILE}: {name} is not supported, got {getattr(config, name)!r}.")
    # The official names are suffixes ("o_proj"), which would also match modules of a vision tower.
    config.target_modules = {key.partition(".lora_")[0] for key in lora}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = config.auto_mapping = None
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    return config


def _check_backbone(backbone: str, lora: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    layouts = official_layouts()
    for other, layout in layouts.items():
        signs = [key for key in tensors if layout.projector in key.split(".")]
        if other != backbone and signs:
            raise ValueError(f"This is a checkpoint for {other}, not {backbone}: {TENSORS_FILE} has {signs[0]}.")
    # A LoRA of LLaVA-NeXT and of Qwen adapt modules of the same names; the projector above tells those two apart.
    adapted = {key.partition(".lora_")[0].rpartition(".")[2] for key in lora}
    wrong = adapted & ({layout.query for layout in layouts.values()} - {layouts[backbone].query})
    if wrong:
        raise ValueError(f"This is a checkpoint for another backbone than {backbone}: LoRA adapts {', '.join(wrong)}.")


def _split(
    tensors: Mapping[str, Tensor], layout: OfficialLayout, *, cross_attention: bool
) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors into "projector" and "head", under our names."""
    in_head = VALUE_HEAD_NAMES | (SKIP_CA_NAMES if cross_attention else {})
    in_projector = {f"{layout.projector}.{key}": key for key in layout.projector_keys}
    if not any(layout.projector in key.split(".") for key in tensors):
        logger.warning("%s has no %s: the base model's own projector is used.", TENSORS_FILE, layout.projector)
        in_projector = {}
    parts = {"projector": _pick(tensors, in_projector), "head": _pick(tensors, in_head)}
    rest = [key for key in tensors if not any(_ends(key, name) for name in (*in_head, *in_projector))]
    modules = {layout.projector, *(name.partition(".")[0] for name in (*VALUE_HEAD_NAMES, *SKIP_CA_NAMES))}
    if strange := [key for key in rest if modules & set(key.split("."))]:
        kind = f"a reward with add_cross_attention: {str(cross_attention).lower()}"
        raise ValueError(f"{TENSORS_FILE} has tensors that {kind} does not have: {', '.join(strange[:4])}.")
    if rest:
        logger.warning(
            "%d tensors of %s are not part of a reward and are ignored: %s.", len(rest), TENSORS_FILE, rest[:4]
        )
    return parts


def _pick(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Find each tensor by the end of its name: the official files have wrappers' names before it."""
    found = {name: [key for key in tensors if _ends(key, name)] for name in names}
    if missing := [name for name, keys in found.items() if not keys]:
        raise ValueError(f"{TENSORS_FILE} lacks {', '.join(missing)}.")
    if several := [keys for keys in found.values() if len(keys) > 1]:
        raise ValueError(f"{TENSORS_FILE} has several tensors of one name: {', '.join(several[0])}.")
    return {ours: tensors[found[name][0]] for name, ours in names.items()}


def _ends(key: str, name: str) -> bool:
    return f".{key}".endswith(f".{name}")


_PROJECT = re.compile(r"llava[-_]?reward")
"""Project name in the folder names of all backbones; its "llava" must not count as the backbone's."""

_OTHER_WORDS = {"overall": "general", "fidelity": "quality"}
"""Other names that the authors give to a dimension; used only where its own name is not found."""


def find_official_folder(files: Sequence[str], *, backbone: str, dimension: str) -> str:
    """Choose the folder with a `reward_config.yaml` whose path names the backbone and the dimension.

    Args:
        files: paths with "/" inside a repository or folder.
        backbone: a name of `BACKBONES`.
        dimension: "alignment", "fidelity", "safety", "overall", or any other word.

    Returns:
        The path of the folder.

    Raises:
        FileNotFoundError: when no folder fits; it lists the folders that hold a checkpoint.
        ValueError: when several fit, which it lists, or the backbone has no official checkpoints.

    Example:
        >>> files = ["README.md", "alignment/llavareward_phi_alignment/reward_config.yaml"]
        >>> find_official_folder(files, backbone="phi3_v", dimension="alignment")
        'alignment/llavareward_phi_alignment'
    """
    folder_word = official_layout(backbone).folder_word
    folders = sorted({str(path.parent) for path in map(PurePosixPath, files) if path.name == YAML_FILE})
    of_backbone = [folder for folder in folders if _names(folder, folder_word)]
    found: list[str] = []
    for word in (dimension, _OTHER_WORDS.get(dimension)):
        found = found or [folder for folder in of_backbone if word and _names(folder, word)]
    if not found:
        raise FileNotFoundError(
            f"No folder with a {YAML_FILE} names {backbone} and {dimension}; there are: {', '.join(folders) or 'none'}."
        )
    if len(found) > 1:
        raise ValueError(
            f"Several folders name {backbone} and {dimension}: {', '.join(found)}. Pass the path of one of them."
        )
    return found[0]


def download_official(repo: str, *, backbone: str, dimension: str, revision: str = "main") -> Path:
    """Download one official checkpoint, and of the repository's other folders only their small `reward_config.yaml`.

    These files show where the checkpoints are. Both steps use `snapshot_download`, so that earlier downloads are found
    without a network.

    Args:
        repo: hub id.
        backbone: as for `find_official_folder`.
        dimension: as for `find_official_folder`.
        revision: branch, tag or commit.

    Returns:
        The checkpoint's folder in the hub's cache.

    Raises:
        OSError: when the repository cannot be reached and is not in the cache, and when no folder fits.
        ValueError: when several folders fit.

    Example:
        >>> download_official("smz8599/LLaVA-Reward", backbone="phi3_v", dimension="safety")  # doctest: +SKIP
    """
    root = Path(snapshot_download(repo, revision=revision, allow_patterns=[f"*{YAML_FILE}"]))
    files = [file.relative_to(root).as_posix() for file in root.rglob(YAML_FILE)]
    folder = find_official_folder(files, backbone=backbone, dimension=dimension)
    # Patterns of the hub's client are globs: an unescaped "[" in a folder name would not match itself.
    patterns = [f"{escape(folder)}/{name}" for name in (YAML_FILE, TENSORS_FILE, f"{LORA_FOLDER}/*")]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / folder


def _names(folder: str, word: str) -> bool:
    """Whether a word of the path begins with this one in any case; "phi" is in "phi35_v" and not in "graphic"."""
    path = _PROJECT.sub("-", folder.lower())
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}", path) is not None
