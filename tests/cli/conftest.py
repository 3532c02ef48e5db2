"""A tiny model in a folder, a reward with a name, and a runner."""

from __future__ import annotations

from importlib import import_module

import pytest

from fk_reward.rewards import REWARDS
from tests.command_line import run_command_line, run_script


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny_sd):
    """Folder of a tiny random Stable Diffusion, as a user would pass it to --model."""
    folder = tmp_path_factory.mktemp("tiny-sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


def run_line(first, *others):
    if first != "script":
        return run_command_line(first, *others)
    name, *options = others
    return run_script(import_module(f"examples.benchmarks.{name.replace('-', '_')}").main, *options)


@pytest.fixture
def run(monkeypatch):
    """Run a command line, or ("script", name, ...) of examples/benchmarks; `brightness` is a known reward."""
    monkeypatch.setitem(REWARDS, "brightness", "tests.cli.brightness:BRIGHTNESS")
    monkeypatch.setenv("COLUMNS", "200")
    return run_line


@pytest.fixture
def refused(run):
    """Run a command line that must be refused with exit code 2, and return what it says on the error stream."""

    def check(*arguments):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.stderr
        return " ".join(result.stderr.split())

    return check
