"""The official folder layout, notes about pictures, and files that are damaged or missing."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from fk_reward.benchmarks.geneval.layout import MADE, PromptFolder, prompt_folders, read_picture, write_whole

RECORD = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"}


def pictures(*colors):
    return [Image.new("RGB", (16, 12), color) for color in colors]


@pytest.fixture
def folder(tmp_path):
    folder = PromptFolder(tmp_path, 3)
    folder.write(RECORD, pictures("red", "blue"), note={"seconds": 2.0})
    return folder


def as_the_official_script_reads(root):
    """What `evaluate_images.py` of GenEval visits: its loops and conditions, in our words."""
    seen = []
    for name in os.listdir(root):
        if os.path.isdir(os.path.join(root, name)) and name.isdigit():
            with open(os.path.join(root, name, "metadata.jsonl")) as file:
                metadata = json.load(file)
            for picture in sorted(os.listdir(os.path.join(root, name, "samples"))):
                path = os.path.join(root, name, "samples", picture)
                if os.path.isfile(path) and re.match(r"\d+\.png", picture):
                    seen.append((metadata, np.asarray(Image.open(path))))
    return seen


def test_the_official_script_reads_it(folder, tmp_path):
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        "00003/made.json",
        "00003/metadata.jsonl",
        "00003/samples/0000.png",
        "00003/samples/0001.png",
    ]
    folder.write_note("verdicts", {"verdicts": []})
    (tmp_path / ".00004.draft").mkdir()
    (first, red), (second, blue) = as_the_official_script_reads(tmp_path)
    assert first == second == RECORD == folder.read_metadata()
    assert (red == (255, 0, 0)).all() and (blue == (0, 0, 255)).all()
    assert [f.index for f in prompt_folders(tmp_path)] == [3]


def test_folders_of_the_official_script_are_read(tmp_path):
    samples = tmp_path / "00010" / "samples"
    samples.mkdir(parents=True)
    for name, color in (("00000.png", "red"), ("00002.png", "lime"), ("00010.png", "blue"), ("grid.png", "black")):
        Image.new("RGBA", (4, 4), color).save(samples / name)
    folder = PromptFolder(tmp_path, 10)
    assert [picture.getpixel((0, 0)) for picture in folder.read_pictures()] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert folder.read_note(MADE) is None


def test_a_note_is_about_these_very_pictures(folder):
    assert folder.read_note(MADE) == {"seconds": 2.0}
    folder.write_note("scores", {"scores": {"a": [1.0, 2.0]}})
    assert folder.read_note("scores") == {"scores": {"a": [1.0, 2.0]}}
    assert not list(folder.path.glob(".*"))
    Image.new("RGB", (16, 12), "green").save(folder.path / "samples" / "0001.png")
    assert folder.read_note("scores") is None
    assert folder.read_note(MADE) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "extra", "note cut", "no digests", "a list"])
def test_a_damaged_prompt_is_not_finished(folder, damage):
    picture, note = folder.path / "samples" / "0000.png", folder.path / "made.json"
    if damage == "cut":
        picture.write_bytes(picture.read_bytes()[:-20])
    elif damage == "empty":
        picture.write_bytes(b"")
    elif damage == "gone":
        picture.unlink()
    elif damage == "extra":
        picture.with_name("0002.png").write_bytes(picture.read_bytes())
    elif damage == "note cut":
        note.write_text(note.read_text()[:30])
    else:
        note.write_text("{}" if damage == "no digests" else "[]")
    assert folder.read_note(MADE) is None


@pytest.mark.parametrize("keep", [0, 8, 40, 60])
def test_a_cut_picture_is_named(tmp_path, keep):
    path = tmp_path / "0000.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    read_picture(path)
    path.write_bytes(path.read_bytes()[: keep * path.stat().st_size // 100])
    with pytest.raises(ValueError, match=r"0000\.png cannot be read as an image: .*Generate again"):
        read_picture(path)


def test_a_text_is_no_picture(tmp_path):
    (tmp_path / "0000.png").write_text("not a picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_picture(tmp_path / "0000.png")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"metadata\.jsonl is missing"),
        ('{"prompt": "a pho', ValueError, "metadata.jsonl: not valid JSON"),
        ("[1]", ValueError, "one JSON object with a prompt"),
        ('{"tag": "colors"}', ValueError, "one JSON object with a prompt"),
    ],
)
def test_a_missing_or_broken_record(folder, content, error, message):
    path = folder.path / "metadata.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        folder.read_metadata()


def test_a_prompt_without_pictures(folder):
    for path in folder.picture_paths():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"samples holds no picture"):
        folder.read_pictures()


@pytest.mark.parametrize("name", ["nothing", "other", "file"])
def test_a_folder_without_prompts(tmp_path, name):
    (tmp_path / "other" / "123").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no folder of pictures in GenEval's layout"):
        prompt_folders(tmp_path / name)


def test_writing_replaces_what_is_there_and_old_drafts(folder, tmp_path):
    (tmp_path / ".00003.draft" / "samples").mkdir(parents=True)
    (tmp_path / ".00003.draft" / "samples" / "0009.png").write_bytes(b"half")
    folder.write_note("verdicts", {})
    folder.write(RECORD, pictures("green"), note={"seconds": 1.0})
    assert [path.name for path in folder.picture_paths()] == ["0000.png"]
    assert folder.read_note("verdicts") is None
    assert [path.name for path in tmp_path.iterdir()] == ["00003"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def fail(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", fail)
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])
