"""Every format gives the same records."""

from __future__ import annotations

import sys

import pytest

from fk_reward.training import PreferenceDataError, PreferencePair, read_preferences
from tests.training.pictures import noise, write_pictures
from tests.training.preference_rows import digest, simple

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
    write_pictures(elsewhere / "img", "2.png", "1.png", "0.png")
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
