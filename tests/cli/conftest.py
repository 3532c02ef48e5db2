"""A tiny model in a folder, a reward with a name, and a runner."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fk_reward.cli import app
from fk_reward.rewards import REWARDS


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny_sd):
    """Folder of a tiny random Stable Diffusion, as a user would pass it to --model."""
    folder = tmp_path_factory.mktemp("tiny-sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch):
    """Run a command line; `brightness` is a known reward."""
    monkeypatch.setitem(REWARDS, "brightness", "tests.cli.brightness:BRIGHTNESS")
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def refused(run):
    """Run a command line that must be refused with exit code 2, and return what it says on the error stream."""

    def check(*arguments):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.stderr
        return " ".join(result.stderr.split())

    return check
