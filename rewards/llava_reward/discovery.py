"""Finding the official checkpoint of a backbone and a dimension among the files of a repository, and downloading it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from fk_reward.rewards.llava_reward.official_checkpoint import LORA_FOLDER, TENSORS_FILE, YAML_FILE

_PROJECT = re.compile(r"llava[-_]?reward")
"""Stands in folder names of all backbones, so that it says nothing about LLaVA."""

_BACKBONE_WORDS = {"phi3_v": "phi", "qwen2_5_vl": "qwen", "llava_next": "llava"}
_OTHER_WORDS = {"overall": "general", "fidelity": "quality"}
"""What else the authors call a dimension; asked only when its own name is nowhere."""


def find_official_folder(files: Sequence[str], *, backbone: str, dimension: str) -> str:
    """Choose the folder with a `reward_config.yaml` whose path names the backbone and the dimension.

    Args:
        files: paths with "/" inside a repository or folder.
        backbone: "phi3_v", "qwen2_5_vl" or "llava_next".
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
    if backbone not in _BACKBONE_WORDS:
        known = ", ".join(_BACKBONE_WORDS)
        raise ValueError(f"No official checkpoints are known for {backbone!r}, only for {known}.")
    folders = sorted({str(path.parent) for path in map(PurePosixPath, files) if path.name == YAML_FILE})
    of_backbone = [folder for folder in folders if _names(folder, _BACKBONE_WORDS[backbone])]
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

    Those show where checkpoints are. Both steps are snapshots of the hub's client, so that without a network what was
    downloaded before is used.

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
    patterns = [f"{escape(folder)}/{name}" for name in (YAML_FILE, TENSORS_FILE, f"{LORA_FOLDER}/*")]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / folder


def _names(folder: str, word: str) -> bool:
    """Whether a word of the path begins with this one in any case; "phi" is in "phi35_v" and not in "graphic"."""
    path = _PROJECT.sub("-", folder.lower())
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}", path) is not None
