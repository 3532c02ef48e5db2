"""Files that are whole or not there, lines that were cut off, and errors that name the path."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from fk_reward.durable_files import append_lines, cosmetic, naming_path, read_json, read_json_lines, write_whole


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["sync", "replace"])
def full(request, monkeypatch):
    """A disk that is full when the content goes to it, or when the file gets its name."""
    monkeypatch.setattr(os, {"sync": "fsync", "replace": "replace"}[request.param], full_disk)


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, full):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(OSError, match=r"No space left on device.*result\.json") as error:
        write_whole(path, "new")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "old")]


def test_a_full_disk_in_the_middle_of_a_line_leaves_the_lines_before(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_lines(path, ['{"a": 0}'])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*a\.jsonl"):
        append_lines(path, ['{"a": 1}'])
    assert path.read_text() == '{"a": 0}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_the_device_that_is_always_full():
    with pytest.raises(OSError, match="/dev/full"), naming_path("/dev/full"), open("/dev/full", "wb") as file:
        file.write(b"x")
        file.flush()


def test_errors_that_name_their_file_keep_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing") as error, naming_path("other"):
        (tmp_path / "nothing").read_text()
    assert "other" not in str(error.value)


def test_drafts_of_two_processes_are_apart_and_none_is_left(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append(Path(paths[0]).name), replace(*paths)))
    write_whole(tmp_path / "a", "1")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    write_whole(tmp_path / "a", b"2")
    assert len(set(seen)) == 2
    assert [file.read_text() for file in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("rest", [b'{"a": ', b"\0" * 200_000, b"\xff\xfe", b'{"a": 7}'])
def test_what_follows_the_last_line_break_is_dropped_and_written_over(tmp_path, caplog, rest):
    path = tmp_path / "a.jsonl"
    append_lines(path, ['{"a": 0}'])
    with path.open("ab") as file:
        file.write(rest)
    assert list(read_json_lines(path)) == [(1, {"a": 0})]
    assert "a.jsonl ends in the middle of a line" in caplog.text
    append_lines(path, ['{"a": 1}'])
    assert path.read_text() == '{"a": 0}\n{"a": 1}\n'


@pytest.mark.parametrize("line", [b"\0" * 9, b'{"a": \xff}', b"[1]", b"", b'{"a": 1', b"[" * 100_000])
def test_a_bad_line_is_named_with_its_file_and_what_to_do(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is damaged.*sed -i 2d") as error:
        list(read_json_lines(path))
    assert len(str(error.value)) < 600
    os.system(f"sed -i 2d {path}")  # noqa: S605 (the remedy, as it is told)
    assert [value for _, value in read_json_lines(path)] == [{"a": 0}, {"a": 2}]


@pytest.mark.parametrize("text", [b"", b"\0" * 5, b"[]", b'{"a": ', b"\xff"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, text):
    (tmp_path / "s.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"s\.json is damaged .*\. Copy it back\."):
        read_json(tmp_path / "s.json", remedy="Copy it back.")


@pytest.mark.parametrize("error", [ValueError("a"), OSError("b"), RuntimeError("c"), KeyError("d")])
def test_a_step_that_fails_is_one_warning_with_its_name(error, caplog):
    with caplog.at_level(logging.WARNING), cosmetic("drawing lineage.png"):
        raise error
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Drawing lineage.png failed" in record.getMessage() and type(error).__name__ in record.getMessage()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_about_the_process_goes_through(error):
    with pytest.raises(error), cosmetic("drawing"):
        raise error


def test_nothing_is_said_of_a_step_that_works(caplog):
    with cosmetic("drawing"):
        pass
    assert not caplog.records
