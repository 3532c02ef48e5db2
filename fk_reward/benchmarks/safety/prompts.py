"""Prompts of a safety run: from a file, with categories and pairs, or of the shapes world; those of a bias audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.geneval.shapes import PROMPT_LISTS, shapes_record
from fk_reward.documents import parse_json
from fk_reward.durable_files import naming_path
from fk_reward.shapes import FORBIDDEN_SIGN, ShapesPrompt, all_prompts, is_heldout
from fk_reward.shapes.prompts import take_turns
from fk_reward.text import text_problem

Record = dict[str, Any]

PROMPTS, SHAPES = "prompts", "shapes-safety"
SUITES = (PROMPTS, SHAPES, *PROMPT_LISTS)
"""A file, and suites of the shapes world."""
ALL = "all"
"""Category of prompts that name none."""

_KEYS = {"prompt", "category", "pair", "side"}
_AUDIT_KEYS = {"prompt", "category", "shows"}


def safety_records(path: Path | None, *, suite: str = PROMPTS, num_prompts: int | None = None) -> tuple[Record, ...]:
    """The prompts as records.

    Args:
        path: of a file, see `read_prompts`; for the suite `"prompts"`, and for it only.
        suite: of `SUITES`.
        num_prompts: the first so many; None for all of a file, and for 150 of a suite.

    Raises:
        ValueError: no file, or one that cannot be read; another suite.

    Example:
        >>> [record["tag"] for record in safety_records(None, suite="shapes-safety", num_prompts=3)]
        ['cross of any colour', 'cross of a named colour', 'red shape']
    """
    if suite not in SUITES:
        raise ValueError(f"The suite should be one of {', '.join(SUITES)}, got {suite!r}.")
    if (path is None) == (suite == PROMPTS):
        raise ValueError(
            f"Give prompts as --prompts FILE, or name a suite of the shapes world ({', '.join(SUITES[1:])}): "
            f"{'--prompts is missing' if path is None else 'both were given'}."
        )
    if path is not None:
        return tuple(read_prompts(path)[:num_prompts])
    number = 150 if num_prompts is None else num_prompts
    if suite == SHAPES:
        return shapes_records(number)
    return tuple({**shapes_record(prompt), "tag": suite} for prompt in PROMPT_LISTS[suite](number))


def shapes_records(num_prompts: int) -> tuple[Record, ...]:
    """Held-out prompts of the shapes world that do not ask for the forbidden sign, each once, categories in turn.

    Args:
        num_prompts: how many; at most all 276 come back.
    """
    prompts = [prompt for prompt in all_prompts() if is_heldout(prompt) and FORBIDDEN_SIGN not in prompt.objects]
    groups = {name: [prompt for prompt in prompts if _shapes_category(prompt) == name] for name in _CATEGORIES}
    total = sum(map(len, groups.values()))
    turns = dict.fromkeys(take_turns(list(groups.values()), total * len(groups)))  # the smaller groups begin again
    chosen = list(turns)[: min(num_prompts, total)]
    return tuple({**shapes_record(prompt), "tag": _shapes_category(prompt)} for prompt in chosen)


_CATEGORIES = ("cross of any colour", "cross of a named colour", "red shape", "neither")


def _shapes_category(prompt: ShapesPrompt) -> str:
    crosses = [spec for spec in prompt.objects if spec.shape == FORBIDDEN_SIGN.shape]
    if any(spec.color is None for spec in crosses):
        return _CATEGORIES[0]
    if crosses:
        return _CATEGORIES[1]
    return _CATEGORIES[2] if any(spec.color == FORBIDDEN_SIGN.color for spec in prompt.objects) else _CATEGORIES[3]


def read_prompts(path: Path) -> list[Record]:
    """Prompts of a file: a line each of a `.txt`, or an object a line of a `.jsonl`.

    An object has `prompt`, and may have `category`; and `pair` and `side`: prompts of one pair say the same of
    different people, and each side of a pair is there once.

    Raises:
        ValueError: a line that cannot be read, by its number; other keys; a side that is there twice; no prompt.
        OSError: there is no such file.
    """
    found: list[Record] = []
    sides: dict[tuple[str, str], str] = {}
    for place, row in _rows(path, _KEYS):
        if ("pair" in row) != ("side" in row):
            raise ValueError(f"{place}: pair and side go together.")
        record: Record = {"tag": _text(row.get("category", ALL), "category", place), "prompt": row["prompt"]}
        if "pair" in row:
            record |= {name: _text(row[name], name, place) for name in ("pair", "side")}
            key = (record["pair"], record["side"])
            if key in sides:
                raise ValueError(f"{place}: side {key[1]!r} of pair {key[0]!r} is there twice; see {sides[key]}.")
            sides[key] = place
        found.append(record)
    return _some(found, path)


def read_audit(path: Path) -> tuple[Record, ...]:
    """Prompts of a bias audit: a `.jsonl` of objects with `prompt` and `shows`, and perhaps `category`.

    `shows` maps what an image may show to a description of it: {"woman": "a photo of a woman who is a nurse", "man":
    "a photo of a man who is a nurse"}. All prompts of a category map the same names.

    Raises:
        ValueError: a line that cannot be read, by its number; names that differ within a category; no prompt.
        OSError: there is no such file.
    """
    found: list[Record] = []
    names: dict[str, tuple[str, ...]] = {}
    for place, row in _rows(path, _AUDIT_KEYS):
        shows = row.get("shows")
        if not isinstance(shows, dict) or len(shows) < 2:
            raise ValueError(f"{place}: shows should map at least two names to descriptions, got {shows!r}.")
        for name, text in shows.items():
            _text(text, f"shows, {name}", place)
        tag = _text(row.get("category", ALL), "category", place)
        if names.setdefault(tag, tuple(shows)) != tuple(shows):
            raise ValueError(
                f"{place}: of category {tag!r} images show {', '.join(names[tag])}, here {', '.join(shows)}."
            )
        found.append({"tag": tag, "prompt": row["prompt"], "shows": dict(shows)})
    return tuple(_some(found, path))


def _some(found: list[Record], path: Path) -> list[Record]:
    if not found:
        raise ValueError(f"{path} holds no prompt.")
    return found


def _rows(path: Path, keys: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and object of each line that is not empty."""
    kinds = (".jsonl", ".txt") if "pair" in keys else (".jsonl",)
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: these prompts are read from a {' or a '.join(kinds)} file.")
    with naming_path(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            row = {"prompt": line.strip()} if path.suffix.lower() == ".txt" else parse_json(line, place)
            yield place, _checked(row, keys, place)


def _checked(row: Any, keys: set[str], place: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object with a prompt, got {type(row).__name__}.")
    if unknown := sorted(set(row) - keys):
        raise ValueError(f"{place}: {unknown[0]!r} is not known; there are {', '.join(sorted(keys))}.")
    _text(row.get("prompt"), "prompt", place)
    return row


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name} should be text, got {value!r}.")
    if (problem := text_problem(value)) is not None:
        raise ValueError(f"{place}: of {name}: {problem}")
    return value


def num_distinct(records: Sequence[Mapping[str, Any]]) -> int:
    """Prompts, each text once: what a bound counts.

    Example:
        >>> num_distinct([{"prompt": "a star"}, {"prompt": "a star"}])
        1
    """
    return len({record["prompt"] for record in records})
