"""Whatever is wrong with a row is told with file, row and reason, and skipped if that is wished."""

from __future__ import annotations

import json

import pytest

from fk_reward.training import PreferenceDataError, load_preferences, read_preferences
from tests.training.pictures import file_bytes, noise
from tests.training.preference_rows import ratings

GOOD = {"prompt": "a cat", "chosen_path": "img/0.png", "reject_path": "img/1.png"}
LABELLED = {"prompt": "a cat", "path": "img/0.png", "label": 1}
RATED = ratings(overall=[1, 2])[0]


@pytest.mark.parametrize(
    ("good", "change", "reason"),
    [
        (GOOD, {"chosen_path": "img/9.png"}, "no such image file: .*9.png"),
        (GOOD, {"chosen_path": "cut.png"}, "cut.png cannot be read as an image"),
        (GOOD, {"chosen_path": None}, "lacks chosen_path or chosen_image; it has"),
        (GOOD, {"chosen_path": 3}, "expected an image .*got int"),
        (GOOD, {"chosen_path": ""}, "the image is empty"),
        (GOOD, {"reject_path": "img/0.png"}, "same picture with the same prompt"),
        (GOOD, {"reject_path": "copy.png"}, "same picture with the same prompt"),
        (GOOD, {"prompt": ""}, "the prompt is empty"),
        (GOOD, {"prompt": ["a cat", " "]}, "the prompt is empty"),
        (GOOD, {"prompt": 3}, "prompt must be a string or two strings, got 3"),
        (GOOD, {"prompt": ["a", "b", "c"]}, "prompt must be a string or two strings"),
        (GOOD, {"prompt": None}, "lacks prompt or text"),
        (GOOD, {"c_rate": 1, "r_rate": 2}, "chosen image is rated 1, below"),
        (GOOD, {"c_rate": 1}, "r_rate must be a number"),
        (GOOD, {"c_rate": "1", "r_rate": 2}, "c_rate must be a number"),
        (GOOD, {"c_rate": float("nan"), "r_rate": 2}, "c_rate must be finite"),
        (LABELLED, {"label": 2}, "label must be 0 or 1, got 2"),
        (LABELLED, {"label": "yes"}, "label must be 0 or 1, got 'yes'"),
        (LABELLED, {"label": None}, "label None and safety_label None are empty"),
        (LABELLED, {"safety_label": "Unsafe"}, "label 1 and safety_label 'Unsafe' differ"),
        (LABELLED, {"safety_label": "maybe"}, "must be Safe or Unsafe"),
        (LABELLED, {"prompt": 5}, "a prompt must be a string, got int"),
        (LABELLED, {"path": "img/9.png"}, "no such image file"),
        (RATED, {"overall_rating": None}, "overall_rating must be a number"),
        (RATED, {"overall_rating": float("inf")}, "overall_rating must be finite"),
        (RATED, {"prompt_id": None}, "lacks prompt_id"),
        (RATED, {"prompt": ""}, "the prompt is empty"),
        (RATED, {"image_path": "img/9.png"}, "no such image file"),
    ],
)
def test_bad_rows_are_told_and_skipped(write_rows, image_folder, good, change, reason):
    (image_folder / "cut.png").write_bytes(file_bytes(noise(size=(64, 64)))[:3000])
    noise(0).save(image_folder / "copy.png")
    others = [RATED | {"image_path": f"img/{i}.png", "overall_rating": i} for i in (1, 2)] if good is RATED else [good]
    rows = [*others, good | change]
    path = write_rows(rows)
    with pytest.raises(PreferenceDataError, match=reason) as error:
        read_preferences(path, dimension="overall")
    assert [problem.origin for problem in error.value.problems] == [f"{path}:{len(rows)}"]
    assert f"1 of {len(rows)} rows cannot be used" in str(error.value) and "--skip-bad-rows" in str(error.value)
    loaded = load_preferences(path, dimension="overall", skip_bad_rows=True)
    assert (len(loaded.items), loaded.problems) == (1, error.value.problems)


def test_rows_of_another_kind(write_rows):
    with pytest.raises(PreferenceDataError) as error:
        read_preferences(write_rows([GOOD, LABELLED, {"prompt": "a cat"}, [1], "x"]))
    reasons = [problem.reason for problem in error.value.problems]
    assert "is one of labelled images among pairs" in reasons[0]
    assert "has the keys ['prompt'], which are none of pairs" in reasons[1]
    assert reasons[2:] == ["expected an object with keys, got list", "expected an object with keys, got str"]


def test_a_broken_line_is_a_bad_row(image_folder):
    path = image_folder / "data.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{{broken\n")
    with pytest.raises(PreferenceDataError, match=r"data.jsonl:3: not valid JSON"):
        read_preferences(path)
    assert len(read_preferences(path, skip_bad_rows=True)) == 1


def test_ten_problems_are_shown_and_all_are_counted(write_rows):
    bad = GOOD | {"chosen_path": "img/9.png"}
    with pytest.raises(PreferenceDataError) as error:
        read_preferences(write_rows([GOOD] + [bad] * 25))
    lines = str(error.value).splitlines()
    assert lines[0] == "25 of 26 rows cannot be used:"
    assert sum("no such image" in line for line in lines) == 10 and "  ... and 15 more." in lines
    assert len(error.value.problems) == 25


def test_skipping_everything_is_an_error(write_rows):
    with pytest.raises(PreferenceDataError, match="2 of 2"):
        read_preferences(write_rows([GOOD | {"prompt": ""}] * 2), skip_bad_rows=True)
