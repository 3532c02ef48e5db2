"""`fk-reward hard-negatives`: what it writes is read as prompt pairs."""

from __future__ import annotations

import json

import pytest

from fk_reward.training import read_preferences
from tests.tiny.image_files import write_images

ROWS = [
    {"prompt": "a red cat and a blue dog", "path": "img/0.png"},
    {"prompt": ["a photo of two owls", "ignored"], "chosen_path": "img/1.png", "reject_path": "img/2.png"},
    {"prompt": "mist", "image_path": "img/2.png"},
]


@pytest.fixture
def captions(tmp_path):
    write_images(tmp_path, "img/0.png", "img/1.png", "img/2.png")
    (tmp_path / "captions.json").write_text(json.dumps(ROWS))
    return tmp_path / "captions.json"


@pytest.mark.parametrize("name", ["pairs.json", "deep/pairs.jsonl"])
def test_it_writes_prompt_pairs(run, captions, tmp_path, name):
    out = tmp_path / name
    result = run("hard-negatives", captions, out, "--per-caption", 2)
    assert result.exit_code == 0, result.output
    pairs = read_preferences(out)
    assert len(pairs) == 4
    for pair in pairs:
        assert pair.prompt in ("a red cat and a blue dog", "a photo of two owls")
        assert pair.rejected_prompt not in (None, pair.prompt)
        assert pair.chosen.digest() == pair.rejected.digest()
    told = " ".join(result.stdout.split())
    assert "4 prompt pairs" in told and "No rule applies to 1 captions" in told and "mist" in told
    text = out.read_text()
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    assert {"kind", "change"} <= set(rows[0]) and not rows[0]["chosen_path"].startswith("/")


def test_options(run, captions, tmp_path):
    arguments = ("--kind", "attribute", "--per-caption", 9, "--seed", 3, "--image-root", tmp_path)
    assert run("hard-negatives", captions, tmp_path / "a.json", *arguments).exit_code == 0
    assert {row["kind"] for row in json.loads((tmp_path / "a.json").read_text())} == {"attribute"}
    assert run("hard-negatives", captions, tmp_path / "b.json", *arguments).exit_code == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_a_file_is_not_replaced_unless_told_so(run, refused, captions, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    assert "exists; choose another name or add --overwrite" in refused(
        "hard-negatives", captions, tmp_path / "out.json"
    )
    assert (tmp_path / "out.json").read_text() == "mine"
    assert run("hard-negatives", captions, tmp_path / "out.json", "--overwrite").exit_code == 0


def test_bad_rows(run, refused, captions, tmp_path):
    bad = [{"prompt": "", "path": "img/0.png"}, {"prompt": "a cat", "path": "gone.png"}, {"prompt": "a cat"}]
    captions.write_text(json.dumps(ROWS + bad))
    told = refused("hard-negatives", captions, tmp_path / "out.json")
    for text in ("3 of 6 rows", "expected a caption", "gone.png", "lacks path or image_path or chosen_path"):
        assert text in told
    result = run("hard-negatives", captions, tmp_path / "out.json", "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert len(read_preferences(tmp_path / "out.json")) == 2


def test_nothing_to_change(refused, captions, tmp_path):
    captions.write_text(json.dumps(ROWS[2:]))
    told = refused("hard-negatives", captions, tmp_path / "out.json")
    assert "No rule applies to any of the 1 captions, such as 'mist'" in told
    assert not (tmp_path / "out.json").exists()


def test_an_unknown_kind(refused, captions, tmp_path):
    told = refused("hard-negatives", captions, tmp_path / "out.json", "--kind", "colour")
    assert "kinds must be among attribute" in told
