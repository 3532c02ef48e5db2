"""The wheel: one top-level name, the four folders inside it, the weights, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.check_release import LARGEST
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, packages, tracked_files

IMPORT_ALL = "import sys; sys.path.insert(0, sys.argv[1]); import fk_reward, {names}; print(fk_reward.__file__)"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of exactly the tracked files."""
    source = tmp_path_factory.mktemp("source")
    for path in tracked_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel built from them without a network."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def members(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def foreign_members(members: set[str]) -> list[str]:
    """Files outside the package and its metadata, and files that no user needs."""
    unwanted = {"tests", "examples"}
    return sorted(
        name
        for name in members
        if not name.startswith(("fk_reward/", "fk_reward-")) or unwanted & set(Path(name).parts)
    )


def test_the_only_top_level_name_is_fk_reward(members):
    assert foreign_members(members) == []


@pytest.mark.parametrize("stray", ["rewards/base.py", "tests/conftest.py", "fk_reward/examples/demo.py"])
def test_a_stray_file_would_be_noticed(members, stray):
    assert foreign_members(members | {stray}) == [stray]


def test_every_tracked_module_is_inside(members):
    modules = [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] in LIBRARY_FOLDERS]
    expected = {path.as_posix() if path.parts[0] == "fk_reward" else f"fk_reward/{path.as_posix()}" for path in modules}
    assert {name for name in members if name.endswith(".py")} == expected


def test_types_and_weights_are_inside(members):
    assets = {path.as_posix() for path in tracked_files() if path.parts[:2] == ("fk_reward", "assets")}
    assert "fk_reward/py.typed" in members
    assert assets <= members
    for model in ("shapes-sd", "shapes-clip"):
        assert any(name.startswith(f"fk_reward/assets/{model}/") and name.endswith(".safetensors") for name in members)


def test_setup_lists_every_package():
    folders = {path.parent for path in tracked_files() if path.name == "__init__.py"}
    library = {folder for folder in folders if folder.parts[0] in LIBRARY_FOLDERS}
    names = {".".join(folder.parts).removeprefix("fk_reward.") for folder in library} - {"fk_reward"}
    assert set(packages()) == {"fk_reward", *(f"fk_reward.{name}" for name in names)}


@pytest.mark.slow
def test_the_unpacked_wheel_imports_by_itself(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = IMPORT_ALL.format(names=", ".join(packages()))
    command = [sys.executable, "-I", "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < LARGEST
