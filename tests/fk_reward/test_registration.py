"""Entry points of other packages: as importlib finds them, read once for what is installed."""

from __future__ import annotations

import importlib
from importlib import metadata

import pytest

from fk_reward.registration import Registrations

GROUP = "fk_reward.toys"
TOYS = Registrations({"own": "toys:OWN"}, GROUP, ("toy", "toys"), ImportError)


def install(folder, name, **entry_points):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")
    importlib.invalidate_caches()


@pytest.fixture
def readings(monkeypatch):
    """The groups that are read from disk."""
    read, groups = metadata.entry_points, []
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: groups.append(group) or read(group=group))
    return groups


def test_they_are_those_that_importlib_finds(tmp_path, monkeypatch):
    install(tmp_path, "first", a="toys:A", b="toys:B")
    monkeypatch.syspath_prepend(str(tmp_path))
    others = {point.name: point for point in metadata.entry_points(group=GROUP)}
    assert TOYS.entry_points() == {"own": metadata.EntryPoint("own", "toys:OWN", GROUP), **others}
    assert [*others] == ["a", "b"]


def test_they_are_read_once(tmp_path, monkeypatch, readings):
    install(tmp_path, "first", a="toys:A")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        assert [*TOYS.entry_points()] == ["own", "a"]
    assert readings == [GROUP]


def test_what_is_installed_later_is_found_and_what_goes_is_not(tmp_path, monkeypatch, readings):
    later = tmp_path / "later"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(later))
    assert [*TOYS.entry_points()] == ["own"]
    install(tmp_path, "first", a="toys:A")
    assert [*TOYS.entry_points()] == ["own", "a"], "a package in a folder that was there"
    later.mkdir()
    install(later, "second", b="toys:B")
    assert [*TOYS.entry_points()] == ["own", "b", "a"], "a folder that was not there"
    monkeypatch.undo()
    assert [*TOYS.entry_points()] == ["own"]
    assert readings == [GROUP] * 3


def test_answers_that_never_change_would_be_noticed(tmp_path, monkeypatch, readings):
    """The saboteur: without the state of its folders, the path is the same before and after an installation."""
    monkeypatch.setattr("fk_reward.registration._state", lambda folder: None)
    with pytest.raises(AssertionError, match="in a folder that was there"):
        test_what_is_installed_later_is_found_and_what_goes_is_not(tmp_path, monkeypatch, readings)
