"""Prompts from files."""

from __future__ import annotations

import io
import json

import pytest

from fk_reward.cli.prompt_files import PromptRow, one_source, parse_prompts, read_prompts, read_table

ROWS = [PromptRow(prompt="a red star, big"), PromptRow(prompt="a circle", negative_prompt="blue", seed=7)]


def written(kind, rows):
    """The same rows as each kind of file has them."""
    if kind == ".txt":
        return "\n".join(row.prompt for row in rows)
    if kind == ".csv":
        cells = [[row.prompt, row.negative_prompt or "", "" if row.seed is None else str(row.seed)] for row in rows]
        lines = [["prompt", "negative_prompt", "seed"], *cells]
        return "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    given = ({name: value for name, value in vars(row).items() if value is not None} for row in rows)
    return "\n".join(json.dumps(row) for row in given)


@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_kind_is_read(tmp_path, kind, end, mark):
    path = tmp_path / f"prompts{kind}"
    path.write_text(mark + written(kind, ROWS) + end, encoding="utf-8")
    expected = [PromptRow(prompt=row.prompt) for row in ROWS] if kind == ".txt" else ROWS
    assert read_prompts(path) == expected


@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl"])
def test_the_standard_input_is_known_by_its_first_line(monkeypatch, kind):
    monkeypatch.setattr("sys.stdin", io.StringIO(written(kind, ROWS)))
    assert [row.prompt for row in read_prompts("-")] == [row.prompt for row in ROWS]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators(separator):
    text = separator.join(("id", "prompt")) + "\r\n" + separator.join(("1", "a star")) + "\r\n"
    assert parse_prompts(text, ".csv", "p.csv") == [PromptRow(prompt="a star")]


def test_a_line_break_in_quotes_belongs_to_the_cell():
    assert read_table('image,prompt\na.png,"a\nstar"\n', "t.csv", column="image") == [
        (3, {"image": "a.png", "prompt": "a\nstar"})
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "\n\n", "holds no prompts"),
        ("p.csv", "text\na star\n", "no column 'prompt'; it has text"),
        ("p.csv", "prompt,seed\na, b, 3\n", "line 2: more cells than the heading has"),
        ("p.csv", "prompt,seed\na star,-1\n", "line 2: seed"),
        ("p.csv", 'prompt\n"a star\n', "line"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2: no 'prompt'"),
        ("p.jsonl", '{"prompt": "a"}\n[1]\n', "line 2: no 'prompt'; it has list"),
        ("p.jsonl", "{", "line 1: not valid JSON"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "line 1: seed"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": 5}', "negative_prompt should be text"),
        ("p.yaml", "a star", "prompts are read from .txt, .csv, .jsonl files"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name) as error:
        read_prompts(tmp_path / name)
    assert message in str(error.value)


def test_latin_1_is_no_utf_8(tmp_path):
    (tmp_path / "p.txt").write_bytes("Füchse".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "p.txt")


def test_one_source_of_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("a star")
    assert one_source(["a circle"], None) == [PromptRow(prompt="a circle")]
    assert one_source([], tmp_path / "p.txt") == [PromptRow(prompt="a star")]
    for prompts, source, got in ((["a"], tmp_path / "p.txt", "both"), ([], None, "neither")):
        with pytest.raises(ValueError, match=f"got {got}"):
            one_source(prompts, source)
