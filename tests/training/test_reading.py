"""Every format gives the same records; a row that cannot be read is named with file, row and reason."""

from __future__ import annotations

import base64
import json
import logging
import sys

import datasets
import numpy as np
import pandas as pd
import pytest

from fk_reward.training import (
    ImageSource,
    LabelledImage,
    PreferenceDataError,
    PreferencePair,
    collate_preferences,
    load_preferences,
    read_preferences,
)
from fk_reward.training.hard_negatives import read_captions
from fk_reward.training.reading import FORMATS, RowFormat
from fk_reward.training.rows import finite_number, first_of
from tests.tiny.image_files import file_bytes, noise, write_images


def simple(item):
    """What a record says, without where its images are."""
    digests = tuple(image.digest()[:8] for image in item.images)
    rest = item.label if isinstance(item, LabelledImage) else item.margin
    return item.prompts, digests, rest


def digest(seed):
    """That of `noise(seed)`."""
    return ImageSource(noise(seed)).digest()[:8]


def ratings(**columns):
    """Rows of ImageRewardDB for one prompt: the ratings of its images by dimension."""
    keys = {"alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating", "overall": "overall_rating"}
    num = len(next(iter(columns.values())))
    return [
        {"prompt_id": "p1", "prompt": "a cat", "image_path": f"img/{i}.png", "rank": i + 1}
        | {keys[name]: values[i] for name, values in columns.items()}
        for i in range(num)
    ]


PAIRS = [
    {
        "prompt_id": "7",
        "prompt": ["a cat", "a cat"],
        "chosen_path": "img/0.png",
        "c_rate": 7,
        "reject_path": "img/1.png",
    }
    | {"r_rate": 5},
    {"prompt": "a dog", "chosen_path": "img/1.png", "reject_path": "img/2.png"},
    {"prompt": ["a cat", "a red cat"], "chosen_path": "img/0.png", "reject_path": "img/0.png"},
]
LABELS = [
    {"path": "img/0.png", "label": 1, "prompt": "a cat", "safety_label": "Safe", "category": "Hate"},
    {"path": "img/1.png", "label": 0, "prompt": ""},
]


EXPECTED = [
    (("a cat", "a cat"), (digest(0), digest(1)), 2.0),
    (("a dog", "a dog"), (digest(1), digest(2)), None),
    (("a cat", "a red cat"), (digest(0), digest(0)), None),
]


@pytest.mark.parametrize("lines", [False, True])
def test_public_pairs(write_rows, lines):
    items = read_preferences(write_rows(PAIRS, lines=lines))
    assert all(isinstance(item, PreferencePair) for item in items)
    assert [simple(item) for item in items] == EXPECTED
    assert [item.rejected_prompt for item in items] == [None, None, "a red cat"]
    assert [item.origin.rpartition(":")[2] for item in items] == ["1", "2", "3"]


def test_rows_in_memory_and_bytes(image_folder):
    by_bytes = [
        {
            "prompt": row["prompt"],
            "chosen_image": {"bytes": (image_folder / row["chosen_path"]).read_bytes(), "path": "x.png"},
            "rejected_image": (image_folder / row["reject_path"]).read_bytes(),
            "c_rate": row.get("c_rate"),
            "r_rate": row.get("r_rate"),
        }
        for row in PAIRS
    ]
    for rows, root in ((PAIRS, image_folder), (iter(PAIRS), str(image_folder)), (by_bytes, None)):
        assert [simple(item) for item in read_preferences(rows, image_root=root)] == EXPECTED


def test_relative_paths_start_at_the_image_root(write_rows, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("images")
    write_images(elsewhere / "img", "2.png", "1.png", "0.png")
    items = read_preferences(write_rows(PAIRS), image_root=elsewhere)
    assert simple(items[1]) == (("a dog", "a dog"), (digest(1), digest(0)), None)


def test_labels(write_rows):
    items = read_preferences(write_rows(LABELS))
    assert [simple(item) for item in items] == [(("a cat",), (digest(0),), True), (("",), (digest(1),), False)]


def test_unsafebench_columns():
    rows = [{"image": noise(0), "safety_label": "Safe", "text": "a cat"}]
    rows += [{"image": noise(1), "safety_label": "Unsafe", "text": None}]
    assert [(item.prompt, item.label) for item in read_preferences(rows)] == [("a cat", True), ("", False)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[]", "no rows"), (b"", "no rows"), (b"[1, 2", "not valid JSON"), (b"\xff\xfe\x00", "neither Parquet nor text")],
)
def test_files_that_are_no_data(image_folder, content, message):
    (image_folder / "data.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_preferences(image_folder / "data.json")


def test_other_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.json"):
        read_preferences(tmp_path / "gone.json")
    with pytest.raises(TypeError, match=r"choose one of its splits \['train', 'test'\]"):
        read_preferences({"train": [], "test": []})
    with pytest.raises(TypeError, match="got int"):
        read_preferences(3)


def test_parquet_without_the_extra(image_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (image_folder / "data").write_bytes(b"PAR1....PAR1")
    with pytest.raises(ImportError, match=r"pip install 'fk-reward\[train\]'"):
        read_preferences(image_folder / "data")


def image_columns(image_folder):
    return [
        {
            "prompt": row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]] * 2,
            "chosen_image": {"bytes": (image_folder / row["chosen_path"]).read_bytes(), "path": None},
            "rejected_image": {"bytes": (image_folder / row["reject_path"]).read_bytes(), "path": None},
            "c_rate": row.get("c_rate"),
            "r_rate": row.get("r_rate"),
        }
        for row in PAIRS
    ]


def test_parquet(image_folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.Table.from_pylist(image_columns(image_folder)), image_folder / "data.txt", row_group_size=2
    )
    items = read_preferences(image_folder / "data.txt")
    assert [simple(item) for item in items] == EXPECTED
    assert items[2].origin == f"{image_folder / 'data.txt'}:3"


def test_datasets(image_folder):
    datasets = pytest.importorskip("datasets")
    rows = image_columns(image_folder)
    rows[1]["chosen_image"] = {"bytes": b"broken", "path": None}
    data = datasets.Dataset.from_list(rows)
    data = data.cast_column("chosen_image", datasets.Image()).cast_column("rejected_image", datasets.Image())
    with pytest.raises(PreferenceDataError, match="row:2: image of 6 bytes cannot be read") as error:
        read_preferences(data)
    assert len(error.value.problems) == 1
    items = read_preferences(data, skip_bad_rows=True)
    assert [simple(item) for item in items] == [EXPECTED[0], EXPECTED[2]]


def test_image_reward_db(write_rows, caplog):
    path = write_rows(ratings(alignment=[5, 3, 3], fidelity=[1, 2, 6], overall=[4, 4, 7]))
    loaded = load_preferences(path, dimension="alignment")
    assert [simple(pair)[1:] for pair in loaded.items] == [
        ((digest(0), digest(1)), 2.0),
        ((digest(0), digest(2)), 2.0),
    ]
    assert (loaded.num_ties, loaded.num_rows) == (1, 3)
    fidelity = read_preferences(path, dimension="fidelity")
    assert [simple(pair)[1:] for pair in fidelity] == [
        ((digest(1), digest(0)), 1.0),
        ((digest(2), digest(0)), 5.0),
        ((digest(2), digest(1)), 4.0),
    ]
    with caplog.at_level(logging.INFO):
        assert len(read_preferences(path, dimension="overall")) == 2
    assert "2 pairs (0 of two prompts) with 1 prompts from 3 rows; 1 ties dropped, 0 bad rows skipped" in caplog.text


def test_images_of_different_prompts_are_not_compared(write_rows):
    rows = ratings(overall=[5, 3, 1])
    rows[2] |= {"prompt_id": "p2", "prompt": "a dog"}
    assert len(read_preferences(write_rows(rows), dimension="overall")) == 1


@pytest.mark.parametrize("dimension", [None, "safety"])
def test_ratings_need_a_dimension(write_rows, dimension):
    with pytest.raises(ValueError, match="alignment, fidelity, overall: choose a dimension"):
        read_preferences(write_rows(ratings(overall=[1, 2])), dimension=dimension)


def test_only_ties(write_rows):
    with pytest.raises(ValueError, match="No preferences are left: 1 pairs tie"):
        read_preferences(write_rows(ratings(overall=[2, 2])), dimension="overall")


def test_a_broken_image_is_told_once_and_not_for_each_pair(write_rows, image_folder):
    path = write_rows(ratings(overall=[1, 2, 3]))
    (image_folder / "img/1.png").write_bytes(b"broken")
    with pytest.raises(PreferenceDataError) as error:
        read_preferences(path, dimension="overall")
    assert [problem.origin for problem in error.value.problems] == [f"{path}:2"]
    assert len(read_preferences(path, dimension="overall", skip_bad_rows=True)) == 1


def test_one_picture_with_two_ratings_is_a_contradiction(write_rows, image_folder):
    noise(0).save(image_folder / "img/1.png")
    with pytest.raises(PreferenceDataError, match="data.txt:2 over .*data.txt:1: .*same image with the same prompt"):
        read_preferences(write_rows(ratings(overall=[1, 2, 3])), dimension="overall")


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
        (GOOD, {"reject_path": "img/0.png"}, "same image with the same prompt"),
        (GOOD, {"reject_path": "copy.png"}, "same image with the same prompt"),
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
    assert "has the keys ['prompt'], which fit none of pairs" in reasons[1]
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


IMAGES = [file_bytes(noise(seed)) for seed in range(3)]
PAIR_ROW = {"prompt": "a cat", "chosen_image": IMAGES[0], "rejected_image": IMAGES[1], "c_rate": 5.0, "r_rate": 2.0}
LABELLED_ROW = {"prompt": "a cat", "image": IMAGES[0], "label": 1}
RATED_ROWS = [
    {"prompt_id": i // 2, "prompt": "a cat", "image": IMAGES[i % 2], "overall_rating": 5 - i % 2} for i in range(4)
]


@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_data_sets_of_every_format(kind):
    pairs = datasets.Dataset.from_list([PAIR_ROW]).with_format(kind)
    labelled = datasets.Dataset.from_list([LABELLED_ROW]).with_format(kind)
    rated = datasets.Dataset.from_list(RATED_ROWS).with_format(kind)
    (pair,) = load_preferences(pairs).items
    assert pair.margin == 3.0 and type(pair.prompt) is str
    assert load_preferences(labelled).items[0].label is True
    assert [pair.margin for pair in load_preferences(rated, dimension="overall").items] == [1.0, 1.0]


def test_an_image_column_in_the_format_of_numpy():
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Value("int8")}
    )
    rows = datasets.Dataset.from_list([LABELLED_ROW], features=features).with_format("numpy")
    assert load_preferences(rows).items[0].image.load().shape == (3, *noise().size[::-1])


def test_rows_of_pandas():
    frame = pd.DataFrame([PAIR_ROW, {**PAIR_ROW, "prompt": "a dog", "c_rate": np.nan, "r_rate": np.nan}])
    loaded = load_preferences(frame.to_dict("records"), skip_bad_rows=True)
    assert [pair.margin for pair in loaded.items] == [3.0]
    assert "c_rate must be finite" in loaded.problems[0].reason
    rows = [row.to_dict() for _, row in pd.DataFrame([LABELLED_ROW, {**LABELLED_ROW, "image": None}]).iterrows()]
    loaded = load_preferences(rows, skip_bad_rows=True)
    assert len(loaded.items) == 1 and "lacks path or image" in loaded.problems[0].reason


def test_a_margin_of_numpy_makes_a_batch():
    (pair,) = load_preferences([{**PAIR_ROW, "c_rate": np.float32(5), "r_rate": np.int64(2)}]).items
    batch = collate_preferences([pair])
    assert batch["margin"].tolist() == [3.0]


def test_images_in_base64_are_read():
    text = base64.b64encode(IMAGES[0]).decode()
    for form in (text, f"data:image/png;base64,{text}"):
        (item,) = load_preferences([{**LABELLED_ROW, "image": form}]).items
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
    loaded = load_preferences([PAIR_ROW, {**PAIR_ROW, **row}], skip_bad_rows=True)
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
    (pair,) = load_preferences(
        [{**PAIR_ROW, "prompt": np.array(["a cat", "a dog"]), "rejected_image": IMAGES[0]}]
    ).items
    assert pair.prompts == ("a cat", "a dog") and type(pair.prompt) is str


def test_keys_of_several_types_are_told():
    loaded = load_preferences([PAIR_ROW, {3: 1, "x": 2, None: 3}], skip_bad_rows=True)
    assert "none of pairs" in loaded.problems[0].reason


def test_a_format_is_a_reader_and_a_line(monkeypatch):
    def read(row, place):
        first = finite_number(row.get("label_0"), "label_0")
        if first == 0.5:
            raise ValueError("label_0 is 0.5: neither image is preferred")
        chosen, rejected = ("jpg_0", "jpg_1") if first > 0.5 else ("jpg_1", "jpg_0")
        return PreferencePair(
            prompt=first_of(row, "caption"),
            chosen=ImageSource.of(row[chosen], root=place.root),
            rejected=ImageSource.of(row[rejected], root=place.root),
            origin=place.origin,
        )

    rows = [{"caption": "a cat", "jpg_0": IMAGES[0], "jpg_1": IMAGES[1], "label_0": label} for label in (1, 0, 0.5)]
    with pytest.raises(PreferenceDataError, match="none of pairs, rated images, labelled images"):
        load_preferences(rows)
    monkeypatch.setitem(FORMATS, "Pick-a-Pic", RowFormat(frozenset({"jpg_0", "jpg_1"}), read))
    loaded = load_preferences(rows, skip_bad_rows=True)
    assert [simple(item)[1] for item in loaded.items] == [(digest(0), digest(1)), (digest(1), digest(0))]
    assert [str(problem) for problem in loaded.problems] == ["row:3: label_0 is 0.5: neither image is preferred"]


def test_a_damaged_parquet_file_is_named(image_folder):
    pytest.importorskip("pyarrow")
    (image_folder / "data").write_bytes(b"PAR1....PAR1")
    with pytest.raises(ValueError, match="data is a damaged Parquet file: "):
        read_preferences(image_folder / "data")
