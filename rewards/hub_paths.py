"""Folders and hub ids: which of them a source is, and whether the files of a folder are still the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fk_reward.models import resolve_model

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_source(source: str | os.PathLike[str], what: str) -> None:
    """Raise when `source` is no folder and cannot be a hub id either, before the hub is asked for it.

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
    """The hub id or the folder of what a person types: these, the name of an embedded model, or an alias.

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
    """A text that changes when the files of a folder or embedded model do; for a hub id the id itself.

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
    return f"{folder.resolve()}@{max((file.stat().st_mtime_ns for file in files), default=0)}#{len(files)}"
