"""Files of one's own, spellings, and what is refused with its line."""

from __future__ import annotations

import json

import pytest

from fk_reward.benchmarks.questions.atoms import Atom, find_file, json_lines, question_record, read_questions, spellings


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_atom_and_its_record_are_json_and_back():
    atom = Atom("Is it?", "No", ("a", "b"), 3, (1,))
    record = question_record("a cow", [Atom("Is there a cow?"), atom], tag="t", groups=["g"], id="x")
    again = json.loads(json.dumps(record))
    assert again == record
    assert [Atom.of(fields) for fields in again["atoms"]] == [Atom("Is there a cow?"), atom]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("How many cows?", "ten", ("ten", "Ten", " ten", " Ten", "10", " 10")),
        ("How many cows?", "dozens", ("dozens", "Dozens", " dozens", " Dozens")),
        ("What colour?", "one", ("one", "One", " one", " One")),
        ("Is it?", "no", ("No", "no", " No", " no")),
    ],
)
def test_spellings(question, answer, expected):
    assert spellings(question, answer) == expected


def test_questions_in_the_file_of_prompts_or_in_one_of_their_own(tmp_path):
    asked = {"question": "How many lamps are there?", "answer": "two", "skills": ["count"]}
    row = {"prompt": "two lamps", "tag": "lamps", "groups": ["light"]}
    together = lines(tmp_path / "together.jsonl", {**row, "questions": [asked]})
    prompts = lines(tmp_path / "prompts.jsonl", row)
    questions = lines(tmp_path / "questions.jsonl", {"prompt": "two lamps", **asked})
    (record,) = read_questions(together)
    assert read_questions(prompts, questions) == (record,)
    assert (record["tag"], record["groups"]) == ("lamps", ["light"])
    assert Atom.of(record["atoms"][0]) == Atom("How many lamps are there?", "two", ("count",))


def test_prompts_alone_are_asked_as_they_are(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa lamp\n\n  a cup \n", encoding="utf-8")
    first, second = read_questions(tmp_path / "prompts.txt")
    assert (first["prompt"], second["prompt"]) == ("a lamp", "a cup")
    assert second["atoms"][0]["question"] == 'Does this image show "a cup"?'


@pytest.mark.parametrize(
    ("prompts", "questions", "message"),
    [
        ([{"prompt": "a"}, {"prompt": "a"}], None, "has a prompt twice"),
        ([{"prompt": ""}], None, "prompts.jsonl:1: a text is missing"),
        ([{"text": "a"}], None, "prompts.jsonl:1 has no 'prompt'; it has text"),
        ([{"prompt": "a"}], [{"prompt": "b", "question": "?"}], "questions.jsonl:1: 'b' is no prompt of"),
        ([{"prompt": "a"}], [{"prompt": "a", "query": "?"}], "'a': a question is an object with question and any of"),
        ([{"prompt": "a", "questions": ["Is it?"]}], None, "got 'Is it\\?'"),
        ([{"prompt": "a", "questions": [{"question": "?", "parents": [7]}]}], None, "question 1 depends on 7"),
        (
            [{"prompt": "a", "questions": [{"question": "?", "number": 2}, {"question": "!"}]}],
            None,
            "two of its questions have one number",
        ),
    ],
)
def test_refused(tmp_path, prompts, questions, message):
    path = lines(tmp_path / "prompts.jsonl", *prompts)
    other = None if questions is None else lines(tmp_path / "questions.jsonl", *questions)
    with pytest.raises(ValueError, match=message):
        read_questions(path, other)


def test_damaged_files(tmp_path):
    path = tmp_path / "x.jsonl"
    for content, message in ((b"", "is empty"), (b"[1]\n", "x.jsonl:1: expected a JSON object"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            json_lines(path)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected a prompt a line"):
        read_questions(tmp_path / "empty.txt")


def test_where_files_are_looked_for(tmp_path):
    path = lines(tmp_path / "data.jsonl", {})
    assert find_file(path, "other") == find_file(tmp_path, "data.jsonl") == path
    with pytest.raises(FileNotFoundError, match=r"has no other\.jsonl"):
        find_file(tmp_path, "other.jsonl")
    with pytest.raises(FileNotFoundError, match="form owner/name"):
        find_file(tmp_path / "nowhere.jsonl", "x")
    with pytest.raises(OSError, match=r"no data\.jsonl in owner/name on the hub"):
        find_file(type(tmp_path)("owner/name"), "data.jsonl")
