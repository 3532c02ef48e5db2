"""Where questions come from: files in several layouts, and the hub's layout through datasets."""

from __future__ import annotations

import json

import datasets
import pytest

from fk_reward.benchmarks.mjbench.questions import HUB_REVISION, open_questions
from tests.benchmarks.mjbench.stage import grey, pair_rows, table

ROWS = pair_rows((200, 100), (50, 150), (30, 20))
FEATURES = datasets.Features(
    {
        "caption": datasets.Value("string"),
        "image0": datasets.Image(),
        "image1": datasets.Image(),
        "label": datasets.ClassLabel(num_classes=2),
        "info": datasets.Value("string"),
    }
)
"""The schema with which the authors made the hub's dataset (`dataset.py` of their repository)."""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_parquet(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    return path


def write_json(path, rows=ROWS):
    """Rows with paths relative to the folder that holds `images`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**row, "image0": "images/0.png", "image1": "images/1.png"} for row in rows]))


def write_images(folder):
    (folder / "images").mkdir(parents=True)
    for name, level in (("0.png", 9), ("1.png", 99)):
        grey(level).save(folder / "images" / name)


def contents(questions):
    return [(q.caption, q.label, [image.mean().item() for image in q.load()]) for q in questions]


@pytest.mark.parametrize("name", ["safety.parquet", "data/safety.parquet", "safety-00000-of-00001.parquet"])
def test_parquet_in_a_folder(tmp_path, name):
    write_parquet(tmp_path / name)
    (tmp_path / "alignment.parquet").write_bytes(b"not read")
    questions = open_questions(str(tmp_path), "safety")
    assert contents(questions) == contents(table(ROWS))
    assert questions[2].origin.endswith("safety.parquet:3") or "00000" in questions[2].origin


def test_a_single_file_and_parts_in_order(tmp_path):
    first, second = write_parquet(tmp_path / "quality-00000-of-00002.parquet", ROWS[:1]), ROWS[1:]
    write_parquet(tmp_path / "quality-00001-of-00002.parquet", second)
    assert len(open_questions(str(first), "quality")) == 1
    assert contents(open_questions(str(tmp_path), "quality")) == contents(table(ROWS))


def test_files_of_a_folder_are_subsets(tmp_path):
    write_images(tmp_path)
    write_json(tmp_path / "alignment" / "counting.json", ROWS[:1])
    write_json(tmp_path / "alignment" / "actions.json", ROWS[1:])
    questions = open_questions(str(tmp_path), "alignment")
    assert [question.subset for question in questions] == ["actions", "actions", "counting"]
    assert questions[0].load()[1].mean().item() == pytest.approx(99 / 255)


def test_the_hub_is_asked_for_one_perspective_of_one_commit(tmp_path, monkeypatch):
    write_parquet(tmp_path / "data" / "alignment.parquet")
    write_parquet(tmp_path / "data" / "safety.parquet", ROWS[:1])
    real, asked = datasets.load_dataset, []

    def from_folder(name, **options):
        asked.append((name, options["revision"]))
        return real(str(tmp_path), **options | {"revision": None})

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    questions = open_questions("MJ-Bench/MJ-Bench", "alignment")
    assert contents(questions) == contents(table(ROWS))
    assert questions[1].origin == "MJ-Bench/MJ-Bench/alignment:2"
    assert asked == [("MJ-Bench/MJ-Bench", HUB_REVISION)]


def test_an_unreachable_hub_says_what_to_do():
    with pytest.raises(OSError, match=r"(?s)cannot be had from the hub.*hf auth login.*local copy"):
        open_questions("MJ-Bench/MJ-Bench", "alignment")


def test_the_digest_is_of_captions_and_labels(tmp_path):
    path = write_parquet(tmp_path / "bias.parquet")
    digest = open_questions(str(path), "bias").digest()
    swapped = [{**row, "label": 1 - row["label"]} for row in ROWS]
    assert open_questions(str(write_parquet(tmp_path / "copy.parquet")), "bias").digest() == digest
    assert open_questions(str(write_parquet(tmp_path / "other.parquet", swapped)), "bias").digest() != digest


def test_a_missing_column_is_found_before_anything_is_scored(tmp_path):
    rows = [{"caption": "a star", "image0": "a.png", "image1": "b.png"}]
    (tmp_path / "alignment.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"alignment.json lacks label: MJ-Bench has image0, image1, caption, label"):
        open_questions(str(tmp_path), "alignment")
    assert len(open_questions(str(tmp_path / "alignment.json"), "bias")) == 1
    datasets.Dataset.from_list([{"caption": "a star", "image0": "a"}]).to_parquet(tmp_path / "safety.parquet")
    with pytest.raises(ValueError, match=r"safety.parquet lacks image1, label"):
        open_questions(str(tmp_path), "safety")


def test_what_is_not_there(tmp_path):
    write_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither bias.parquet .* nor a folder bias .* it has images"):
        open_questions(str(tmp_path), "bias")
    with pytest.raises(FileNotFoundError, match="No file or folder nowhere/at/all"):
        open_questions("nowhere/at/all", "bias")
    (tmp_path / "bias.json").write_text("[]")
    with pytest.raises(ValueError, match="no rows"):
        open_questions(str(tmp_path), "bias")
    (tmp_path / "bias.json").write_text('[{"caption": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        open_questions(str(tmp_path), "bias")
    (tmp_path / "safety.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"safety.parquet cannot be read as Parquet"):
        open_questions(str(tmp_path), "safety")
    with pytest.raises(ValueError, match="perspective should be one of"):
        open_questions(str(tmp_path), "beauty")
