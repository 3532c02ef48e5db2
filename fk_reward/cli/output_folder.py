"""The folder that a command writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import typer

from fk_reward.folder_lock import usable_folder


def named_path(text: str | Path) -> Path:
    """The path that was typed.

    Raises:
        typer.BadParameter: for an empty one (of an unset variable of a shell), which would be the current folder.

    Example:
        >>> named_path("results").name
        'results'
    """
    if not str(text).strip():
        raise typer.BadParameter("the name is empty; write . for the current folder.")
    return Path(text)


NAMED_PATH: Final[dict[str, Any]] = {"parser": named_path, "metavar": "PATH"}
"""Arguments of the `typer.Option` or `typer.Argument` of a path to write to."""


def prepare_folder(folder: Path, *, overwrite: bool) -> Path:
    """Make a folder for results, and refuse one that holds something already, hidden files excepted.

    Args:
        folder: where the results shall go.
        overwrite: accept a folder with files; files of the same names will be replaced, others are left alone.

    Returns:
        The folder, which exists.

    Raises:
        FileExistsError: it is not empty and `overwrite` is False.
        NotADirectoryError: it is a file.

    Example:
        >>> import tempfile
        >>> prepare_folder(Path(tempfile.mkdtemp()) / "new", overwrite=False).is_dir()
        True
    """
    usable_folder(folder)
    if not overwrite and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileExistsError(f"The output folder {folder} is not empty; choose another one or add --overwrite.")
    return folder
