"""Prompts from files: lines of text, CSV or JSON lines; from the standard input, too."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fk_reward.documents import parse_json
from fk_reward.durable_files import naming_path
from fk_reward.text import require_text
from fk_reward.value_checks import whole_number

STDIN = "-"
KINDS = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt, and what its row of a file says beside it.

    Attributes:
        prompt: the prompt.
        negative_prompt: its own negative prompt; None for that of the command.
        seed: of its first particle; None for that of the command.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None


def read_prompts(source: str | Path) -> list[PromptRow]:
    """Read prompts: one a line of a `.txt`, one a row of a `.csv`, one an object (or string) a line of a `.jsonl`.

    CSV and JSON lines have a column `prompt`, and may have `negative_prompt` and `seed`; other columns are for others.
    Empty lines are passed over.

    Args:
        source: a file, or "-" for the standard input, whose kind is seen from its first line: JSON begins with `{` or
            `"`, CSV is known by a heading with `prompt` among its columns; anything else is lines of text.

    Raises:
        ValueError: no prompt, no column `prompt`, an unknown kind of file, or a row that cannot be read, by its line.
        OSError: there is no such file.
    """
    if str(source) == STDIN:
        text, name = sys.stdin.read(), "the standard input"
        kind = _kind_of(text)
    else:
        path, name = Path(source), str(source)
        kind = path.suffix.lower()
        if kind not in KINDS:
            raise ValueError(f"{name}: prompts are read from {', '.join(KINDS)} files, or from - (the standard input).")
        with naming_path(path):
            try:
                text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
            except UnicodeDecodeError as error:
                raise ValueError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    rows = parse_prompts(text, kind, name)
    if not rows:
        raise ValueError(f"{name} holds no prompts.")
    require_text([row.prompt for row in rows], name)
    return rows


def parse_prompts(text: str, kind: str, name: str) -> list[PromptRow]:
    r"""The rows of a text.

    Args:
        text: the whole file.
        kind: one of `KINDS`.
        name: of the file, for messages.

    Example:
        >>> parse_prompts("a star\n\na circle\n", ".txt", "prompts.txt")[1].prompt
        'a circle'
        >>> parse_prompts("prompt,seed\n\"a star, red\",7\n", ".csv", "prompts.csv")
        [PromptRow(prompt='a star, red', negative_prompt=None, seed=7)]
        >>> parse_prompts('{"prompt": "a star"}\n"a circle"', ".jsonl", "prompts.jsonl")[1].prompt
        'a circle'
        >>> parse_prompts('{"text": "a star"}', ".jsonl", "prompts.jsonl")
        Traceback (most recent call last):
        ValueError: prompts.jsonl, line 1: no 'prompt'; it has text.
    """
    if kind == ".txt":
        return [PromptRow(prompt=line.strip()) for line in text.splitlines() if line.strip()]
    return list(_csv_rows(text, name) if kind == ".csv" else _json_rows(text, name))


def read_table(text: str, name: str, *, column: str) -> list[tuple[int, dict[str, str]]]:
    r"""Rows of a CSV with a heading, each with its line.

    Args:
        text: the whole file; columns are separated by commas, semicolons or tabs, by what the heading has.
        name: of the file, for messages.
        column: one that the heading should have.

    Raises:
        ValueError: it has no such column, or a row has more cells than the heading.

    Example:
        >>> read_table("image;prompt\na.png;a star", "rows.csv", column="image")
        [(2, {'image': 'a.png', 'prompt': 'a star'})]
    """
    heading = text.partition("\n")[0]
    separator = next((mark for mark in "\t;," if mark in heading), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restkey="", strict=True)
    columns = [str(cell).strip() for cell in reader.fieldnames or ()]
    reader.fieldnames = columns
    if column not in columns:
        raise ValueError(f"{name}: no column {column!r}; it has {', '.join(columns) or 'none'}.")
    rows = []
    try:
        for row in reader:
            if "" in row and "" not in columns:
                raise ValueError(f"{name}, line {reader.line_num}: more cells than the heading has; quote commas.")
            rows.append((reader.line_num, {key: value or "" for key, value in row.items()}))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}.") from error
    return rows


def _csv_rows(text: str, name: str) -> Iterable[PromptRow]:
    for line, row in read_table(text, name, column="prompt"):
        if any(row.values()):
            yield _row(row, f"{name}, line {line}")


def _json_rows(text: str, name: str) -> Iterable[PromptRow]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            place = f"{name}, line {number}"
            value = parse_json(line, place)
            yield _row({"prompt": value} if isinstance(value, str) else value, place)


def _row(values: Any, place: str) -> PromptRow:
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str) or not values["prompt"].strip():
        found = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        said = " is empty" if isinstance(values, dict) and values.get("prompt") == "" else ""
        raise ValueError(f"{place}: 'prompt'{said}." if said else f"{place}: no 'prompt'; it has {found}.")
    negative, seed = values.get("negative_prompt") or None, values.get("seed")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"{place}: negative_prompt should be text, got {negative!r}.")
    return PromptRow(prompt=values["prompt"].strip(), negative_prompt=negative, seed=_seed(seed, place))


def _seed(value: Any, place: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    try:
        return whole_number("seed", value, minimum=0)
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from error


def _kind_of(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if first[:1] in ("{", '"') and not first.startswith('"prompt"'):
        return ".jsonl"
    cells = [cell.strip().strip('"') for mark in ",;\t" for cell in first.split(mark)]
    return ".csv" if "prompt" in cells else ".txt"


def one_source(prompts: Sequence[str], source: str | Path | None) -> list[PromptRow]:
    """The prompts that were typed, or those of a file.

    Raises:
        ValueError: both or neither.
    """
    if bool(prompts) == (source is not None):
        got = "both" if prompts else "neither"
        raise ValueError(f"Give prompts in quotes, or --prompts FILE: got {got}.")
    if source is not None:
        return read_prompts(source)
    require_text(prompts, "prompts")
    return [PromptRow(prompt=prompt) for prompt in prompts]
