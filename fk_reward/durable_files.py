"""Result files: complete or absent, on disk before the next step begins, and errors that name the path.

All commands write through this module. Python's own error on a full disk names neither file nor folder, because the
failing system call knows a file descriptor only.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


@contextmanager
def naming_path(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to errors of the operating system that do not name one, such as that of a full disk.

    Raises:
        OSError: with the same number, and `path` as its file name.

    Example:
        >>> with naming_path("out/result.json"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'out/result.json'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file that is either complete or absent, even after a crash of the machine.

    The content goes to a draft beside it, `.NAME.PID.draft`, which replaces it in one step. The process id keeps the
    drafts of two processes apart.

    Args:
        path: the file; its folder is made where it is missing.
        content: text (UTF-8), bytes, or a function that writes to an open file.

    Returns:
        The path.

    Raises:
        OSError: it names the path; the old file is as it was, and no draft is left.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = write_whole(Path(folder) / "new" / "a.json", "{}")
        ...     [file.name for file in path.parent.iterdir()]
        ['a.json']
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with naming_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                _put(file, content)
                file.flush()
                os.fsync(file.fileno())  # before the rename, or a crash could leave the name on an empty file
            os.replace(draft, path)
        except BaseException:  # Ctrl-C, too, leaves no draft
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


def append_lines(path: str | os.PathLike[str], lines: Sequence[str]) -> None:
    """Add lines to a file in one write; a line that a killed process left unfinished is removed first.

    Raises:
        OSError: it names the path; the file is as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.jsonl"
        ...     _ = path.write_text("one" + chr(10) + "tw")
        ...     append_lines(path, ["two"])
        ...     path.read_text().split()
        ['one', 'two']
    """
    path = Path(path)
    data = "".join(f"{line}\n" for line in lines).encode()
    # Unbuffered: closing a buffered file after a full disk would try once more to write the rest.
    with naming_path(path), path.open("a+b", buffering=0) as file:
        end = _end_of_whole_lines(file)
        try:
            file.truncate(end)
            _write_all(file, data)
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def read_json(path: str | os.PathLike[str], *, remedy: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file.
        remedy: a sentence for the error: what to do with a damaged file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged; the message names it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({_reason(error)}). {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (expected a JSON object, got {type(content).__name__}). {remedy}")
    return content


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file with a JSON object a line.

    Text after the last line break was cut off by a kill or a full disk: it is skipped with a warning, and
    `append_lines` removes it, so that its results are made again.

    Args:
        path: the file.

    Yields:
        Line number, from 1, and the object.

    Raises:
        ValueError: another line is not a JSON object; the message names file and line, and says what to do.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.jsonl"
        ...     append_lines(path, ['{"prompt": 0}', '{"prompt": 1}'])
        ...     list(read_json_lines(path))
        [(1, {'prompt': 0}), (2, {'prompt': 1})]
    """
    path = Path(path)
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        logger.warning("%s ends in the middle of a line, which is left out: what it held is made again.", path)
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        yield number, _json_line(line, path, number)


@contextmanager
def cosmetic(step: str) -> Iterator[None]:
    """Go on after an error in the block, with a warning that names the step.

    For plots, previews and pages that show what is written already. Write the results first: what fails here is left
    out. Compute nothing in the block.

    Args:
        step: what the block does, as "drawing lineage-000.png".

    Example:
        >>> with cosmetic("drawing lineage.png"):
        ...     raise ValueError("no such font")
    """
    try:
        yield
    # Any exception: Matplotlib, PIL and font files raise all kinds, and a drawing must not cost hours of work.
    # MemoryError and KeyboardInterrupt are about the process and not about the drawing; they are not caught.
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (see above)
        logger.warning("%s failed, and was left out: %s: %s", step.capitalize(), type(error).__name__, error)
        logger.debug("Where %s failed:", step, exc_info=True)


def _json_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8"))
        if isinstance(found, dict):
            return found
        reason = f"expected a JSON object, got {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
    raise ValueError(
        f"{path}, line {number} is damaged ({reason}; it begins with {line[:40]!r}). Delete that line, for instance "
        f"with `sed -i {number}d {path}`, and start the same command again: only what it held is made again."
    )


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _put(file: BinaryIO, content: str | bytes | Callable[[BinaryIO], None]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def _write_all(file: RawIOBase, data: bytes) -> None:
    """An unbuffered file may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _end_of_whole_lines(file: RawIOBase) -> int:
    """Place behind the last line break, sought from the end in blocks: files of results may be long."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        place = (file.read(end - start) or b"").rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _sync_folder(folder: Path) -> None:
    """Have the operating system write a folder's list of names to the disk; Windows cannot."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
