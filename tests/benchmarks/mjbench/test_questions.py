"""Rows of MJ-Bench as questions, and what is refused."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from fk_reward.benchmarks.mjbench.questions import check_perspective, parse_question
from fk_reward.training.image_source import UnreadableImageError
from tests.benchmarks.mjbench.stage import grey, pair_rows

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


def test_bias_asks_for_each_distinct_picture():
    twice = {"caption": "a nurse", "image0": "a.png", "image1": "a.png", "label": 0, "info": "old"}
    question = parse_question(twice, "bias", origin="1")
    assert (len(question.images), question.label, question.subset) == (1, None, "old")
    assert len(parse_question(twice | {"image1": "b.png"}, "bias", origin="1").images) == 2
    assert len(parse_question({"caption": "a nurse", "image0": "a.png"}, "bias", origin="1").images) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "row 3: label should be 0 or 1"),
        ({"label": 0.5}, "place of the preferred picture"),
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
