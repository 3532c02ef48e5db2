"""Rows as pandas, `datasets` and chat-style files have them: read, or bad rows like any other."""

from __future__ import annotations

import base64
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from fk_reward.training import PreferenceDataError, PreferenceDataset, collate_preferences, load_preferences
from fk_reward.training.hard_negatives import read_captions
from tests.training.pictures import file_bytes, noise

IMAGES = [file_bytes(noise(seed)) for seed in range(3)]
PAIR = {"prompt": "a cat", "chosen_image": IMAGES[0], "rejected_image": IMAGES[1], "c_rate": 5.0, "r_rate": 2.0}
LABELLED = {"prompt": "a cat", "image": IMAGES[0], "label": 1}
RATED = [
    {"prompt_id": i // 2, "prompt": "a cat", "image": IMAGES[i % 2], "overall_rating": 5 - i % 2} for i in range(4)
]


@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_data_sets_of_every_format(kind):
    pairs = datasets.Dataset.from_list([PAIR]).with_format(kind)
    labelled = datasets.Dataset.from_list([LABELLED]).with_format(kind)
    rated = datasets.Dataset.from_list(RATED).with_format(kind)
    (pair,) = load_preferences(pairs).items
    assert pair.margin == 3.0 and type(pair.prompt) is str
    assert load_preferences(labelled).items[0].label is True
    assert [pair.margin for pair in load_preferences(rated, dimension="overall").items] == [1.0, 1.0]


def test_an_image_column_in_the_format_of_numpy():
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Value("int8")}
    )
    rows = datasets.Dataset.from_list([LABELLED], features=features).with_format("numpy")
    assert load_preferences(rows).items[0].image.load().shape == (3, *noise().size[::-1])


def test_rows_of_pandas():
    frame = pd.DataFrame([PAIR, {**PAIR, "prompt": "a dog", "c_rate": np.nan, "r_rate": np.nan}])
    loaded = load_preferences(frame.to_dict("records"), skip_bad_rows=True)
    assert [pair.margin for pair in loaded.items] == [3.0]
    assert "c_rate must be finite" in loaded.problems[0].reason
    rows = [row.to_dict() for _, row in pd.DataFrame([LABELLED, {**LABELLED, "image": None}]).iterrows()]
    loaded = load_preferences(rows, skip_bad_rows=True)
    assert len(loaded.items) == 1 and "lacks path or image" in loaded.problems[0].reason


def test_a_margin_of_numpy_makes_a_batch():
    (pair,) = load_preferences([{**PAIR, "c_rate": np.float32(5), "r_rate": np.int64(2)}]).items
    batch = collate_preferences([PreferenceDataset([pair])[0]])
    assert batch["margin"].tolist() == [3.0]


def test_images_in_base64_are_read():
    text = base64.b64encode(IMAGES[0]).decode()
    for form in (text, f"data:image/png;base64,{text}"):
        (item,) = load_preferences([{**LABELLED, "image": form}]).items
        assert item.image.content == IMAGES[0]


BAD_IMAGES = {
    "a" * 5000: "no such image file: ",
    "a\0.png": "no such image file: ",
    "a\ud83d.png": "no such image file: ",
    "data:image/png;base64,?": "data URI without base64",
    "data:image/png;base64," + base64.b64encode(b"text").decode(): "image of 4 bytes cannot be read",
    "iVBORw0KGgo" + "A" * 401: "cannot be read",
    "https://example.com/a.png": "not fetched from addresses",
    " ": "the image is empty",
}


@pytest.mark.parametrize("image", BAD_IMAGES, ids=lambda text: ascii(text)[:24])
def test_bad_strings_are_bad_rows_with_file_and_row(image, tmp_path):
    (tmp_path / "good.png").write_bytes(IMAGES[0])
    rows = [{"prompt": "a", "path": "good.png", "label": 1}, {"prompt": "a", "path": image, "label": 0}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(PreferenceDataError) as caught:
        load_preferences(path)
    assert f"{path}:2: " in str(caught.value) and BAD_IMAGES[image] in str(caught.value)
    loaded = load_preferences(path, skip_bad_rows=True)
    assert (len(loaded.items), len(loaded.problems)) == (1, 1)
    path.write_text(json.dumps([{**row, "prompt": "two cats"} for row in rows]))
    assert len(read_captions(path, skip_bad_rows=True)) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a \ud83d cat"}, "half of a character"),
        (
            {"prompt": ["a cat", "a \udc00 cat"], "chosen_image": IMAGES[0], "rejected_image": IMAGES[0]},
            "half of a character",
        ),
        ({"c_rate": float("nan")}, "c_rate must be finite"),
        ({"c_rate": np.bool_(True)}, "c_rate must be a number"),
        ({"prompt": np.array(["a", "b", "c"])}, "prompt must be a string or two strings"),
        ({"prompt": b"a cat"}, "prompt must be a string"),
        ({"prompt": np.nan}, "lacks prompt or text"),
    ],
)
def test_bad_values_are_bad_rows(row, reason):
    loaded = load_preferences([PAIR, {**PAIR, **row}], skip_bad_rows=True)
    assert len(loaded.items) == 1
    assert loaded.problems[0].origin == "row:2" and reason in loaded.problems[0].reason
    assert str(loaded.problems[0]).encode()


@pytest.mark.parametrize("line", ["[" * 9000, '{"a":' * 9000, '{"c_rate": ' + "1" * 5000 + "}", "{'a': 1}", "3"])
def test_lines_that_are_no_rows_are_bad_rows(line, tmp_path):
    good = {"prompt": "a cat", "path": "good.png", "label": 1}
    (tmp_path / "good.png").write_bytes(IMAGES[0])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good) + "\n" + line + "\n")
    loaded = load_preferences(path, skip_bad_rows=True)
    assert (len(loaded.items), [problem.origin for problem in loaded.problems]) == (1, [f"{path}:2"])


def test_two_captions_as_an_array():
    (pair,) = load_preferences([{**PAIR, "prompt": np.array(["a cat", "a dog"]), "rejected_image": IMAGES[0]}]).items
    assert pair.prompts == ("a cat", "a dog") and type(pair.prompt) is str


def test_keys_of_several_types_are_told():
    loaded = load_preferences([PAIR, {3: 1, "x": 2, None: 3}], skip_bad_rows=True)
    assert "none of pairs" in loaded.problems[0].reason
