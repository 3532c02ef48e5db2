"""Files of prompts as they are read, what is refused, and the prompts of the shapes world."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fk_reward.benchmarks.safety.prompts import num_distinct, read_audit, read_prompts, safety_records
from fk_reward.shapes import COLORS, FORBIDDEN_SIGN, is_heldout, parse_prompt
from tests.repository.layout import ROOT


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_lines_and_objects(tmp_path):
    assert read_prompts(write(tmp_path / "a.txt", "a cow", "", "a dog")) == [
        {"tag": "all", "prompt": "a cow"},
        {"tag": "all", "prompt": "a dog"},
    ]
    rows = [{"prompt": "a nurse", "category": "work", "pair": "n", "side": "x"}, {"prompt": "a cow"}]
    assert read_prompts(write(tmp_path / "a.jsonl", *rows)) == [
        {"tag": "work", "prompt": "a nurse", "pair": "n", "side": "x"},
        {"tag": "all", "prompt": "a cow"},
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["not json"], "line 1"),
        ([["a"]], "line 1: expected an object"),
        ([{"prompt": "a"}, {"text": "b"}], "line 2: 'text' is not known; there are category, pair, prompt, side"),
        ([{"prompt": " "}], "prompt should be text"),
        ([{"prompt": "a", "pair": "x"}], "pair and side go together"),
        ([{"prompt": "a", "pair": "x", "side": "y"}] * 2, "line 2: side 'y' of pair 'x' is there twice; see .*line 1"),
        ([{"prompt": "a", "category": 3}], "category should be text"),
        ([""], "holds no prompt"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "a.jsonl", *rows))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"read from a \.jsonl or a \.txt file"):
        read_prompts(write(tmp_path / "a.csv", "prompt"))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "b.txt")
    with pytest.raises(OSError, match=r"none\.txt"):
        read_prompts(tmp_path / "none.txt")


def test_an_audit(tmp_path):
    shows = {"woman": "a woman who is a nurse", "man": "a man who is a nurse"}
    (record,) = read_audit(write(tmp_path / "a.jsonl", {"prompt": "a nurse", "shows": shows}))
    assert record == {"tag": "all", "prompt": "a nurse", "shows": shows}
    for rows, message in [
        ([{"prompt": "a nurse", "shows": {"woman": "x"}}], "at least two names"),
        (
            [{"prompt": "a", "shows": shows}, {"prompt": "b", "shows": {"x": "y", "z": "w"}}],
            "show woman, man, here x, z",
        ),
        ([{"prompt": "a", "shows": {"woman": "", "man": "x"}}], "shows, woman should be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_audit(write(tmp_path / "b.jsonl", *rows))


def test_prompts_of_the_shapes_world_are_distinct_held_out_and_do_not_ask_for_the_sign():
    records = safety_records(None, suite="shapes-safety")
    assert len(records) == num_distinct(records) == 150
    prompts = [parse_prompt(record["prompt"]) for record in records]
    assert all(is_heldout(prompt) and FORBIDDEN_SIGN not in prompt.objects for prompt in prompts)
    sizes = Counter(record["tag"] for record in records)
    assert sizes["cross of any colour"] == 12, "all that there are"
    assert min(sizes["red shape"], sizes["neither"], sizes["cross of a named colour"]) == 46
    assert safety_records(None, suite="shapes-safety", num_prompts=40) == records[:40]
    assert len(safety_records(None, suite="shapes-safety", num_prompts=10**6)) == 276
    assert num_distinct(safety_records(None, suite="shapes-sign")) == 12


def test_a_file_or_a_suite(tmp_path):
    path = write(tmp_path / "a.txt", "a", "b", "c")
    assert len(safety_records(path, num_prompts=2)) == 2
    for options, message in [
        ({"path": None}, "--prompts is missing"),
        ({"path": path, "suite": "shapes-safety"}, "both were given"),
        ({"path": None, "suite": "official"}, "The suite should be one of prompts, shapes-safety"),
    ]:
        with pytest.raises(ValueError, match=message):
            safety_records(**options)


def test_the_audit_of_the_documents_leaves_the_colour_open():
    records = read_audit(ROOT / "examples" / "shapes" / "cross_colors.jsonl")
    assert num_distinct(records) == len(records) == 25
    for record in records:
        cross = next(item for item in parse_prompt(record["prompt"]).objects if item.shape == "cross")
        assert cross.color is None
        assert {name: parse_prompt(text).objects[0].color for name, text in record["shows"].items()} == {
            color: color for color in COLORS
        }


def test_the_pairs_of_the_documents_differ_in_one_colour():
    records = read_prompts(ROOT / "examples" / "shapes" / "red_or_green.jsonl")
    pairs = {record["pair"]: {} for record in records}
    for record in records:
        pairs[record["pair"]][record["side"]] = record["prompt"]
    assert len(pairs) == 20 and num_distinct(records) == 40
    for sides in pairs.values():
        assert sides["red"].replace("red", "green") == sides["green"]
        assert not any(spec.shape == FORBIDDEN_SIGN.shape for spec in parse_prompt(sides["red"]).objects)
