"""The one command that gates a change, and the make targets that the README promises."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.conftest import slow_files_first
from tests.repository.layout import ROOT

GATE = ROOT / ".ci" / "run"


def test_the_gate_is_an_executable_strict_script():
    assert os.access(GATE, os.X_OK)
    assert "set -euo pipefail" in GATE.read_text()
    subprocess.run(["bash", "-n", str(GATE)], check=True)


def test_the_gate_checks_before_it_tests_and_nothing_twice():
    commands = [line.split(" <")[0].split(" #")[0] for line in GATE.read_text().splitlines() if line.startswith("make")]
    assert commands == ["make lint types doctests", "make test"]
    checks = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("check:"))
    assert checks.split(" ##")[0].strip() == "check: lint types doctests gates", "gates are tests/repository"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("demo", ["fk-reward demo --out outputs/demo"]),
        ("test", ['pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not long" tests']),
        ("test-all", ["pytest -q -n 3 --dist loadfile --no-loadscope-reorder tests"]),
        ("check", ["ruff check", "ruff format --check", "mypy", "--doctest-modules", "tests/repository"]),
    ],
)
def test_targets_run_what_they_promise(target, commands):
    dry_run = ["make", "--dry-run", "--always-make", "-C", str(ROOT), target, "WORKERS=3"]
    plan = subprocess.run(dry_run, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    assert [command for command in ["-m venv", "-c constraints.txt", *commands] if command not in plan] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_misspelt_target_is_noticed():
    plan = subprocess.run(["make", "--dry-run", "-C", str(ROOT), "all-tests"], capture_output=True, check=False)
    assert plan.returncode != 0


def test_workers_begin_with_the_slow_files(request):
    """Of this session, whatever it is: each file in one piece, the order within it as it was."""
    items = request.session.items
    ordered = slow_files_first(items)
    files = list(dict.fromkeys(item.path for item in ordered))
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "long")))}
    assert [path in slow for path in files] == sorted((path in slow for path in files), reverse=True)
    for path in files:
        assert [item for item in ordered if item.path == path] == [item for item in items if item.path == path]
    assert sorted(map(id, ordered)) == sorted(map(id, items))
