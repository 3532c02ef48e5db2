"""The folder that a command writes to."""

from __future__ import annotations

from pathlib import Path


def prepare_folder(folder: Path, *, overwrite: bool) -> Path:
    """Make a folder for results, and refuse one that holds something already.

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
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output folder {folder} is a file; choose another name.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"The output folder {folder} is not empty; choose another one or add --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
