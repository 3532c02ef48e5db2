"""One run a folder: who comes second is refused by name, and a killed process leaves nothing locked."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
from contextlib import ExitStack
from types import SimpleNamespace

import filelock
import pytest

from fk_reward.output_folder import FolderInUseError, hold_folder, hold_folder_together

fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(fork is None, reason="starts processes by fork, which is fast")


def hold_until_told(folder, share, ours):
    with hold_folder(folder, share=share):
        ours.send("holding")
        ours.poll(60)  # until it is killed


@pytest.fixture
def other_process():
    """Start a process that holds a folder until the test is over; returns it when it does."""
    with ExitStack() as stack:

        def start(folder, share=(0, 1)):
            ours, theirs = fork.Pipe()  # an Event would wait for ever for a process that was killed
            process = fork.Process(target=hold_until_told, args=(folder, share, theirs))
            process.start()
            stack.callback(process.join, 30)
            stack.callback(process.kill)
            assert ours.poll(30)
            return process

        yield start


@needs_fork
def test_the_second_is_told_who_holds_the_folder(tmp_path, other_process):
    process = other_process(tmp_path / "out")
    with pytest.raises(FolderInUseError) as refusal, hold_folder(tmp_path / "out"):
        pass
    for part in (str(tmp_path / "out"), f"process {process.pid}", socket.gethostname()):
        assert part in str(refusal.value)


@needs_fork
def test_a_killed_process_leaves_the_folder_free(tmp_path, other_process):
    process = other_process(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / ".fk-reward.lock").exists(), "it had no time to remove it"
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / ".fk-reward.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_was_writing_about_itself_is_removed(tmp_path):
    draft = tmp_path / "..fk-reward.json.513.draft"
    draft.write_text("{")
    with hold_folder(tmp_path):
        assert not draft.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "goes"),
    [
        ((0, 2), (1, 2), True),
        ((0, 2), (0, 2), False),
        ((0, 2), (1, 3), False),
        ((0, 2), (0, 1), False),
        ((0, 1), (1, 2), False),
    ],
)
def test_shares_of_one_number_go_together(tmp_path, monkeypatch, first, second, goes):
    monkeypatch.setattr("fk_reward.output_folder._PATIENCE", 0.2)
    with ExitStack() as stack:
        stack.enter_context(hold_folder(tmp_path, share=first))
        if not goes:
            stack.enter_context(pytest.raises(FolderInUseError))
        stack.enter_context(hold_folder(tmp_path, share=second))
    with hold_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_folder_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"file is a file"), hold_folder(tmp_path / "file"):
        pass
    with pytest.raises(OSError, match=r"file/sub"), hold_folder(tmp_path / "file" / "sub"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_no_soft_lock_is_left(tmp_path, monkeypatch, caplog, number):
    def unknown(lock):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "_acquire", unknown)
    with hold_folder(tmp_path):
        pass
    assert "has no locks" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_launched_processes_share_one_lock_and_all_are_refused(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda box: sent.append(list(box)))
    main = SimpleNamespace(is_main_process=True, num_processes=2)
    with (
        hold_folder_together(tmp_path, main),
        hold_folder_together(tmp_path, SimpleNamespace(is_main_process=False, num_processes=2)),
    ):
        assert sent == [[None], [None]]
        with pytest.raises(FolderInUseError), hold_folder_together(tmp_path, main):
            pass
    error = sent[-1][0]
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda box: box.__setitem__(0, error))
    other = SimpleNamespace(is_main_process=False, num_processes=2)
    with pytest.raises(FolderInUseError, match="in use by"), hold_folder_together(tmp_path, other):
        pass
