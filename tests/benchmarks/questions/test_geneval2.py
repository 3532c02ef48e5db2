"""GenEval 2's file as its README has it, on lines of our own, and questions about records of the first GenEval."""

from __future__ import annotations

import json

import pytest

from fk_reward.benchmarks.geneval.prompts import (
    color_attribution_record,
    color_record,
    counting_record,
    geneval_records,
    position_record,
    two_object_record,
)
from fk_reward.benchmarks.questions.geneval2 import clause_atoms, read_geneval2, with_questions

ROW = {
    "prompt": "four wooden spoons under a hat",
    "atom_count": 5,
    "vqa_list": [["How many spoons are in the image?", "four"], ["Are the spoons wooden?", "Yes"]],
    "skills": ["count", "attribute"],
}


def write(tmp_path, *rows):
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fields(tmp_path):
    (record,) = read_geneval2(write(tmp_path, ROW))
    assert (record["prompt"], record["tag"], record["groups"]) == (ROW["prompt"], "5 atoms", ["5 atoms"])
    pairs = [[atom["question"], atom["answer"]] for atom in record["atoms"]]
    assert pairs == ROW["vqa_list"]
    assert [atom["skills"] for atom in record["atoms"]] == [["count"], ["attribute"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": ["count"]}, "lists of one length"),
        ({"vqa_list": [["Is it?"], ["a", "b"]]}, "pairs of a question and its answer"),
        ({"vqa_list": [["How many?", "eleven"], ["Is it?", "Yes"]]}, "'eleven'; GenEval 2 has numbers"),
        ({"vqa_list": [["How many?", "two"], ["Is it?", "No"]]}, "'No'; GenEval 2 has"),
        ({"atom_count": "5"}, "whole number"),
        ({"prompt": " "}, "geneval2_data.jsonl:1: .*a text is missing"),
        ({"vqa_list": [], "skills": []}, "no question about it"),
    ],
)
def test_refused_with_the_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_geneval2(write(tmp_path, {**ROW, **change}))


def test_a_missing_field_and_a_prompt_twice(tmp_path):
    with pytest.raises(ValueError, match="has no 'skills'; it has atom_count, prompt, vqa_list"):
        read_geneval2(write(tmp_path, {name: value for name, value in ROW.items() if name != "skills"}))
    with pytest.raises(ValueError, match="twice"):
        read_geneval2(write(tmp_path, ROW, ROW))


def asked(record):
    return [(atom["question"], atom["answer"]) for atom in with_questions(record)["atoms"]]


def test_questions_about_records_ask_what_the_records_ask():
    assert asked(two_object_record("bench", "person")) == [
        ("Are there any benches in the image?", "Yes"),
        ("Are there any people in the image?", "Yes"),
    ]
    assert asked(counting_record("bus", 3)) == [
        ("How many buses are in the image?", "three"),
        ("Are there any buses in the image?", "Yes"),
    ]
    assert asked(color_record("cow", "red"))[0] == ("Is the cow red?", "Yes")
    assert asked(position_record("cow", "left of", "dog"))[-1] == ("Is the cow to the left of the dog?", "Yes")
    assert asked(color_attribution_record(("red", "cow"), ("blue", "dog")))[2] == ("Is the dog blue?", "Yes")


def test_every_official_record_has_questions():
    records = geneval_records()
    counted = [any(question.startswith("How many") for question, _ in asked(record)) for record in records]
    assert sum(counted) == sum(record["tag"] == "counting" for record in records) > 0


def test_two_clauses_of_one_class_are_told_apart():
    clauses = [{"class": "cow", "count": 1, "color": color} for color in ("red", "blue")]
    atoms = clause_atoms(clauses, exact=True)
    assert [(atom.number, atom.question, atom.answer) for atom in atoms] == [
        (1, "How many cows are in the image?", "two"),
        (2, "Is there a red cow in the image?", "Yes"),
        (3, "Are there any cows in the image?", "Yes"),
        (4, "Is there a blue cow in the image?", "Yes"),
    ]
