"""Telling a folder from a hub id, before the hub is asked for a folder that is not there."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_source(source: str | os.PathLike[str], what: str) -> None:
    """Raise when `source` is no folder and cannot be a hub id either.

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
