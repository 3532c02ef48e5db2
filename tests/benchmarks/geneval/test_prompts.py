"""The 553 records against the official file or its digest, and files of other suites."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from fk_reward.benchmarks.geneval import prompts
from fk_reward.benchmarks.geneval.prompts import OBJECT_NAMES, geneval_records, read_records
from tests.repository.layout import ROOT

OFFICIAL_DIGEST = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"


def official_file() -> Path | None:
    """`GENEVAL_METADATA`, or the file in a folder `geneval` of any folder beside the repository."""
    named = os.environ.get("GENEVAL_METADATA")
    found = [Path(named)] if named else sorted(ROOT.parent.glob("*/geneval/evaluation_metadata.jsonl"))
    return next(iter(found), None)


def check_equals_official(records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    assert hashlib.sha256(text.encode()).hexdigest() == OFFICIAL_DIGEST


def test_equals_the_digest_of_the_official_file():
    check_equals_official(geneval_records())


@pytest.mark.skipif(official_file() is None, reason="needs the official evaluation_metadata.jsonl")
def test_equals_the_official_file():
    lines = official_file().read_text(encoding="utf-8").splitlines()
    assert hashlib.sha256(official_file().read_bytes()).hexdigest() == OFFICIAL_DIGEST
    assert list(geneval_records()) == [json.loads(line) for line in lines]
    assert read_records(official_file()) == geneval_records()


def test_tasks_have_their_sizes():
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(record["tag"] for record in geneval_records()) == sizes
    assert {record["include"][0]["class"] for record in geneval_records()[:80]} == set(OBJECT_NAMES)


def test_nobody_is_colored():
    colored = [clause["class"] for record in geneval_records() for clause in record["include"] if "color" in clause]
    assert colored
    assert "person" not in colored


def test_callers_get_their_own_records():
    geneval_records()[0]["include"].clear()
    assert geneval_records()[0]["include"]


@pytest.mark.parametrize(("name", "value"), [("SEED", 44), ("DRAWS", 99), ("COLORS", ("red", "blue"))])
def test_other_draws_are_refused(monkeypatch, name, value):
    monkeypatch.setattr(prompts, name, value)
    with pytest.raises(RuntimeError, match=r"read evaluation_metadata\.jsonl"):
        geneval_records()


def test_swapped_records_are_noticed():
    first, second, *rest = geneval_records()
    with pytest.raises(AssertionError):
        check_equals_official([second, first, *rest])


def test_a_file_is_read_back(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in geneval_records()[::50]) + "\n\n")
    assert read_records(path) == geneval_records()[::50]


COW = {"class": "cow", "count": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'tag'", "Expecting property name"),
        ('["cow"]', "a record should be a JSON object"),
        (json.dumps({"prompt": "a cow", "include": [COW]}), "tag should be a text, got None"),
        (json.dumps({"tag": "t", "prompt": " ", "include": [COW]}), "prompt should be a text, got ' '"),
        (json.dumps({"tag": "t", "prompt": "p"}), "include should be a list of at least one clause, got None"),
        (json.dumps({"tag": "t", "prompt": "p", "include": []}), "include should be a list of at least one clause"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW], "exclude": {}}), "exclude should be a list"),
        (json.dumps({"tag": "t", "prompt": "p", "include": ["cow"]}), r"include\[0\] should be a JSON object"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW], "size": 3}), "fields that no judge knows .size."),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW | {"shape": "round"}]}), r"include\[0\] has fields"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW | {"count": 0}]}), "count should be a whole number"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW | {"count": True}]}), "count should be a whole number"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [{"count": 1}]}), "class should be a text, got None"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW | {"color": 3}]}), "color should be a text, got 3"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW | {"position": ["above", 0]}]}), "an earlier clause"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW, COW | {"position": ["near", 0]}]}), "left of, right"),
        (json.dumps({"tag": "t", "prompt": "p", "include": [COW], "exclude": [COW | {"color": "red"}]}), "exclude"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    path = tmp_path / "suite.jsonl"
    path.write_text(f"{json.dumps(geneval_records()[0])}\n{line}\n")
    with pytest.raises(ValueError, match=reason) as error:
        read_records(path)
    assert str(error.value).startswith(f"{path}, line 2: ")


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no record"):
        read_records(path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(ValueError, match="line 1: "):
        read_records(path)
