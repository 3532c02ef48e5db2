"""Questions of MJ-Bench and where they are read from."""

from __future__ import annotations

import io
import json

import datasets
import pytest
from PIL import Image

from fk_reward.benchmarks.mjbench.questions import HUB_REVISION, check_perspective, open_questions, parse_question
from fk_reward.training.image_source import UnreadableImageError
from tests.benchmarks.mjbench.stage import grey, pair_rows, table

ROW = {"caption": "a star", "image0": grey(200), "image1": grey(100), "label": 1}


def test_a_row_of_the_hub():
    encoded = io.BytesIO()
    grey(255).save(encoded, "PNG")
    row = {**ROW, "image0": {"bytes": encoded.getvalue(), "path": None}, "info": ""}
    question = parse_question(row, "alignment", origin="hub:1", subset="counting")
    assert (question.caption, question.label, question.subset) == ("a star", 1, "counting")
    assert [image.max().item() for image in question.load()] == pytest.approx([1.0, 100 / 255])


@pytest.mark.parametrize(
    ("columns", "subset"),
    [({"info": "old_male"}, "old_male"), ({"category": "x", "subcategory": "y"}, "y"), ({"info": None}, "file")],
)
def test_the_subset_is_told_by_a_column_or_the_file(columns, subset):
    assert parse_question(ROW | columns, "alignment", origin="1", subset="file").subset == subset


def test_bias_asks_for_each_distinct_image():
    twice = {"caption": "a nurse", "image0": "a.png", "image1": "a.png", "label": 0, "info": "old"}
    question = parse_question(twice, "bias", origin="1")
    assert (len(question.images), question.label, question.subset) == (1, None, "old")
    assert len(parse_question(twice | {"image1": "b.png"}, "bias", origin="1").images) == 2
    assert len(parse_question({"caption": "a nurse", "image0": "a.png"}, "bias", origin="1").images) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "row 3: label should be 0 or 1"),
        ({"label": 0.5}, "place of the preferred image"),
        ({"label": True}, "got True"),
        ({"label": "0"}, "label should be 0 or 1"),
        ({"caption": " "}, "row 3: of the caption: the prompt is empty"),
        ({"caption": 5}, "must be a string"),
        ({"image1": None}, "row 3: expected an image"),
        ({"image1": ""}, "empty"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        parse_question(ROW | change, "alignment", origin="row 3")


def test_another_schema_is_refused():
    row = {"prompt": "a star", "chosen_path": "a.png", "reject_path": "b.png"}
    with pytest.raises(ValueError, match="row 3 lacks image0, image1, caption, label.*this has chosen_path, prompt"):
        parse_question(row, "alignment", origin="row 3")


def test_unknown_perspective():
    with pytest.raises(ValueError, match="alignment, safety, quality, bias, got 'beauty'"):
        check_perspective("beauty")


def test_a_truncated_picture_is_told_with_its_row(tmp_path):
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(encoded, "PNG")
    (tmp_path / "cut.png").write_bytes(encoded.getvalue()[:400])
    row = pair_rows((9, 5))[0] | {"image1": "cut.png"}
    question = parse_question(row, "alignment", origin="pairs.json:7", root=tmp_path)
    with pytest.raises(UnreadableImageError, match=r"pairs.json:7: .*cut.png cannot be read"):
        question.load()


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
    with pytest.raises(OSError, match=r"(?s)cannot be loaded from the hub.*hf auth login.*local copy"):
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
