"""One run per folder: a second one that would write into it ends at once, and names the process that holds it.

Otherwise a re-queued job whose first copy still runs would do all the work again beside it, or fail on a file that the
other one is about to rename.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fk_reward.durable_files import naming_path, write_whole

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

LOCK_FILE = ".fk-reward.lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""
_PATIENCE = 5.0  # seconds in which a share waits for another one that is just starting


class FolderInUseError(OSError):
    """Another process writes into the folder."""


@contextmanager
def hold_folder(folder: str | os.PathLike[str], *, share: tuple[int, int] = (0, 1)) -> Iterator[Path]:
    """Keep a folder for this process while it writes there.

    The lock is the operating system's (`flock` by way of `filelock`; on NFS a lock of the server, so it holds between
    machines). It ends with the process, however that ends: a killed job never leaves a folder locked, and the file
    that it leaves behind means nothing.

    Args:
        folder: made where it is missing, and removed again if nothing was written.
        share: index and number of the processes that share the work by hand (`--shard`). Different shares of one
            number go together; anything else does not.

    Yields:
        The folder.

    Raises:
        FolderInUseError: an OSError, when another process holds it; it names folder, process and machine.
        NotADirectoryError: it is a file.
        OSError: it cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as out, hold_folder(out):
        ...     with hold_folder(out):
        ...         pass
        Traceback (most recent call last):
        fk_reward.output_folder.FolderInUseError: ... is in use by process ...
    """
    folder = Path(folder)
    # Before the folder is made: these are removed again if nothing was written.
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    usable_folder(folder)
    whole, alone = folder / LOCK_FILE, share[1] == 1
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)  # first on the stack, so that it runs last, after the lock files are gone
        with ExitStack() as gate:  # of shares, held only while one of them begins
            (stack if alone else gate).enter_context(_held(whole, folder, patience=0.0 if alone else _PATIENCE))
            _refuse_other_shares(folder, share)
            if not alone:
                stack.enter_context(_held(_share_file(folder, share), folder))
        yield folder


@contextmanager
def hold_folder_together(folder: str | os.PathLike[str], state: PartialState) -> Iterator[Path]:
    """The same for all processes that `accelerate launch` started: the main one holds the folder for all of them.

    Args:
        folder: made where it is missing.
        state: of the processes; all of them come here.

    Raises:
        FolderInUseError: in every process, when another run holds the folder.
        OSError: in every process, when it cannot be written to.
    """
    with ExitStack() as stack:
        problem: list[OSError | None] = [None]
        if state.is_main_process:
            try:
                stack.enter_context(hold_folder(folder))
            except OSError as error:
                problem = [error]
        if state.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            # Before anyone raises: a process that ends alone would leave the others waiting for it.
            broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]
        yield Path(folder)


def usable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder for results where it is missing.

    Raises:
        NotADirectoryError: it is a file.
        OSError: it cannot be made; the message names it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output folder {folder} is a file; choose another name.")
    with naming_path(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare_folder(folder: Path, *, overwrite: bool) -> Path:
    """Make a folder for results, and refuse one that is not empty, hidden files excepted.

    Args:
        folder: where the results go.
        overwrite: accept a folder with files: those of the same names are replaced, others are left alone.

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


@contextmanager
def _held(path: Path, folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire(timeout=patience, poll_interval=0.05)
    except Timeout:
        raise FolderInUseError(_in_use(folder, path)) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning("The file system of %s has no locks: do not start a second run on it.", folder)
        yield
        return
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        holder = _holder_file(path)
        for draft in holder.parent.glob(f".{holder.name}.*.draft"):  # of holders that were killed while they wrote it
            draft.unlink(missing_ok=True)
        write_whole(holder, json.dumps(about) + "\n")
        yield
    finally:
        # Removed while it is still locked: a process that opened it before and locks it next sees from its number of
        # links that the file is gone (filelock checks), and so two processes never hold a lock each.
        for file in (_holder_file(path), path):
            with suppress(OSError):  # Windows does not remove open files
                file.unlink()
        lock.release()


def _remove_empty(folders: Sequence[Path]) -> None:
    """A command that is refused leaves no folder behind."""
    for folder in folders:
        with suppress(OSError):  # it holds something, or is gone
            folder.rmdir()


def _refuse_other_shares(folder: Path, share: tuple[int, int]) -> None:
    """Raise while shares of another number are at work; of any number, if this process does all the work."""
    for path in sorted(folder.glob(f"{Path(LOCK_FILE).stem}-*-of-*.lock")):
        if path.stem.rpartition("-")[2] != str(share[1]):
            with _held(path, folder):
                pass


def _share_file(folder: Path, share: tuple[int, int]) -> Path:
    return folder / f"{Path(LOCK_FILE).stem}-{share[0]}-of-{share[1]}.lock"


def _holder_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _in_use(folder: Path, path: Path) -> str:
    try:
        about = json.loads(_holder_file(path).read_text(encoding="utf-8"))
        holder = f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or just ended
        holder = f"another process, which has not said who it is ({path.name} is locked)"
    return f"{folder} is in use by {holder}. Wait until it has ended, or name another folder."
