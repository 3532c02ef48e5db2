"""`fk-reward preferences` from a file to tables, and what it refuses."""

from __future__ import annotations

import json

import pytest
from PIL import Image


@pytest.fixture
def pairs(tmp_path):
    """Two pairs, of which brightness gets one right."""
    for colour in ("white", "black"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
    rows = [
        {"prompt": "light", "chosen_path": "white.png", "reject_path": "black.png"},
        {"prompt": "dark", "chosen_path": "black.png", "reject_path": "white.png"},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    return tmp_path / "pairs.json"


def test_table_and_files(run, pairs, tmp_path):
    out = tmp_path / "out"
    result = run("preferences", "--data", pairs, "--reward", "brightness", "--out", out)
    assert result.exit_code == 0, result.output
    assert "0.500" in result.stdout
    content = json.loads((out / "preferences.json").read_text())
    (row,) = content["rows"]
    assert (row["reward"], row["file"], row["num"], row["accuracy"]) == ("brightness", str(pairs), 2, 0.5)
    assert "| brightness |" in (out / "preferences.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "at least one --reward"),
        (("--reward", "brightnes"), "brightness"),
        (("--reward", "brightness", "--data", "nowhere.json"), "nowhere.json"),
        (("--adapter", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_refused(refused, pairs, tmp_path, options, message):
    assert message in refused("preferences", "--data", pairs, "--out", tmp_path / "out", *options)
