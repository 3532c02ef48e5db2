"""Compositions on the command line."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.command_line import run_command_line


def run(*arguments):
    return run_command_line(*arguments)


@pytest.mark.usefixtures("scripted")
def test_score(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    options = ("-p", "x", "--json", "--batch-size", 1)
    result = run("score", tmp_path / "red.png", *options, "--reward", "0.5*a + 0.25*safe@q")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scores"][0]["reward"] == 1.0
    negative = run("score", tmp_path / "red.png", *options, "--reward", "-a")
    assert json.loads(negative.stdout)["scores"][0]["reward"] == -4.0


@pytest.mark.usefixtures("scripted")
def test_a_mistake_is_shown_at_its_place(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    result = run("score", tmp_path / "black.png", "-p", "x", "--reward", "0.5*a + safty")
    assert result.exit_code == 2
    assert "\n  0.5*a + safty\n          ^" in result.stderr


@pytest.mark.usefixtures("scripted")
def test_card():
    result = run("rewards", "a / 2 + 1", "--json")
    assert result.exit_code == 0, result.output
    (card,) = json.loads(result.stdout)
    assert (card["name"], card["spread"], card["typical_range"]) == ("0.5*a + 1", 0.25, [-1.0, 3.0])
