"""The records of a suite, which describe what an image must show: GenEval's 553, or those of a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from fk_reward.documents import parse_json
from fk_reward.text import text_problem

OBJECT_NAMES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""The classes of COCO in COCO's order; mouse, remote and keyboard are called by two words, as GenEval does."""

COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's colours, in its order."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
"""GenEval's relations, in its order."""


NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four"}


def with_article(words: str) -> str:
    """Put a or an before words, by their first letter.

    Example:
        >>> with_article("orange"), with_article("cow")
        ('an orange', 'a cow')
    """
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def single_object_record(name: str) -> dict[str, Any]:
    """Ask for one object.

    Example:
        >>> single_object_record("bench")["prompt"]
        'a photo of a bench'
    """
    return _record("single_object", [{"class": name, "count": 1}], with_article(name))


def two_object_record(first: str, second: str) -> dict[str, Any]:
    """Ask for two objects.

    Example:
        >>> two_object_record("bench", "apple")["prompt"]
        'a photo of a bench and an apple'
    """
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return _record("two_object", include, f"{with_article(first)} and {with_article(second)}")


def counting_record(name: str, count: int) -> dict[str, Any]:
    """Ask for exactly two, three or four objects of a kind.

    Example:
        >>> record = counting_record("bus", 3)
        >>> record["prompt"], record["include"], record["exclude"]
        ('a photo of three buses', [{'class': 'bus', 'count': 3}], [{'class': 'bus', 'count': 4}])
    """
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    phrase = f"{NUMBERS[count]} {plural}"
    return _record("counting", [{"class": name, "count": count}], phrase, exclude=[{"class": name, "count": count + 1}])


def color_record(name: str, color: str) -> dict[str, Any]:
    """Ask for an object of a colour.

    Example:
        >>> color_record("bench", "red")["include"]
        [{'class': 'bench', 'count': 1, 'color': 'red'}]
    """
    include = [{"class": name, "count": 1, "color": color}]
    return _record("colors", include, f"{with_article(color)} {name}")


def position_record(name: str, relation: str, other: str) -> dict[str, Any]:
    """Ask for an object in relation to another, which comes first in the list.

    Example:
        >>> position_record("dog", "right of", "kite")["include"]
        [{'class': 'kite', 'count': 1}, {'class': 'dog', 'count': 1, 'position': ['right of', 0]}]
    """
    include = [{"class": other, "count": 1}, {"class": name, "count": 1, "position": [relation, 0]}]
    return _record("position", include, f"{with_article(name)} {relation} {with_article(other)}")


def color_attribution_record(first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    """Ask for two objects, each of its colour.

    Args:
        first: colour and class of one.
        second: colour and class of the other.

    Example:
        >>> color_attribution_record(("red", "bench"), ("orange", "cow"))["prompt"]
        'a photo of a red bench and an orange cow'
    """
    include = [{"class": name, "count": 1, "color": color} for color, name in (first, second)]
    phrases = (f"{with_article(color)} {name}" for color, name in (first, second))
    return _record("color_attr", include, " and ".join(phrases))


def _record(
    tag: str, include: list[dict[str, Any]], phrase: str, *, exclude: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    clauses = {"include": include} | ({"exclude": exclude} if exclude else {})
    return {"tag": tag, **clauses, "prompt": f"a photo of {phrase}"}


_CLAUSE = {"class", "count"}


def check_record(record: object) -> dict[str, Any]:
    """Check a record and return it unchanged.

    Args:
        record: content of a line of JSON.

    Raises:
        ValueError: it is not a record in the format of GenEval's `evaluation_metadata.jsonl`.

    Example:
        >>> check_record({"tag": "counting", "prompt": "two cows", "include": [{"class": "cow", "count": 0}]})
        Traceback (most recent call last):
        ValueError: include[0]: count should be a whole number of at least 1, got 0.
    """
    fields = _checked_fields(record, "a record", allowed={"tag", "include", "exclude", "prompt"})
    for name in ("tag", "prompt"):
        _check_text(fields, name)
    for name in ("include", "exclude") if "exclude" in fields else ("include",):
        if not isinstance(fields.get(name), list) or not fields[name]:
            raise ValueError(f"{name} should be a list of at least one clause, got {fields.get(name)!r}.")
    for index, clause in enumerate(fields["include"]):
        _check_clause(clause, f"include[{index}]", allowed=_CLAUSE | {"color", "position"})
        _check_position(clause, index)
    for index, clause in enumerate(fields.get("exclude", [])):
        _check_clause(clause, f"exclude[{index}]", allowed=_CLAUSE)
    return fields


def _checked_fields(value: object, what: str, *, allowed: Set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} should be a JSON object, got {value!r}.")
    if unknown := sorted(set(value) - allowed):
        # Ignored, a misspelt field would make the record easier.
        raise ValueError(f"{what} has fields that no judge knows ({', '.join(unknown)}); known: {sorted(allowed)}.")
    return value


def _check_text(fields: dict[str, Any], name: str) -> None:
    if not isinstance(fields.get(name), str) or not fields[name].strip():
        raise ValueError(f"{name} should be a text, got {fields.get(name)!r}.")
    if (problem := text_problem(fields[name])) is not None:
        raise ValueError(f"{name}: {problem}")


def _check_clause(clause: object, place: str, *, allowed: Set[str]) -> None:
    fields = _checked_fields(clause, place, allowed=allowed)
    # `type` instead of `isinstance`: bool is a subclass of int.
    if type(fields.get("count")) is not int or fields["count"] < 1:
        raise ValueError(f"{place}: count should be a whole number of at least 1, got {fields.get('count')!r}.")
    for name in ("class", "color") if "color" in fields else ("class",):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise ValueError(f"{place}: {name} should be a text, got {fields.get(name)!r}.")


def _check_position(clause: dict[str, Any], index: int) -> None:
    if "position" not in clause:
        return
    position = clause["position"]
    if isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS:
        if type(position[1]) is int and 0 <= position[1] < index:
            return
    raise ValueError(
        f"include[{index}]: position should be one of {', '.join(RELATIONS)}, and the number of an earlier clause, "
        f"got {position!r}."
    )


SEED = 43
DRAWS = 100
"""Records drawn for each task but the first; fewer are left where one was drawn twice."""

DIGEST = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
"""SHA-256 of the official `evaluation_metadata.jsonl`."""


def geneval_records() -> tuple[dict[str, Any], ...]:
    """The 553 records of GenEval (Ghosh et al. 2023, arXiv 2310.11513), equal to the official ones and in their order.

    They are drawn as by `prompts/create_prompts.py` of github.com/djghosh13/geneval, with NumPy's `default_rng(43)`:
    every class once, then 100 draws for each of the other five tasks; of equal records the first is kept.

    Raises:
        RuntimeError: the installed NumPy draws other numbers from that seed, so that the records are not the official
            ones; read those from their file with `read_records`.

    Example:
        >>> records = geneval_records()
        >>> len(records), records[0]["prompt"], records[-1]["prompt"]
        (553, 'a photo of a bench', 'a photo of a blue pizza and a yellow baseball glove')
    """
    rng = np.random.default_rng(SEED)
    records = [single_object_record(name) for name in _choose(OBJECT_NAMES, rng, len(OBJECT_NAMES))]
    for draw in (_draw_two_objects, _draw_counting, _draw_color, _draw_position, _draw_color_attribution):
        records += [draw(rng) for _ in range(DRAWS)]
    lines = dict.fromkeys(json.dumps(record) for record in records)
    if hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() != DIGEST:
        raise RuntimeError(
            f"NumPy {np.__version__} draws other prompts from seed {SEED} than the official ones; "
            "read evaluation_metadata.jsonl of github.com/djghosh13/geneval instead."
        )
    return tuple(json.loads(line) for line in lines)


def read_records(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """Read the records of another suite in the format of `evaluation_metadata.jsonl`, a JSON object a line.

    Args:
        path: the file; blank lines are skipped.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not a record, or the file has no record; the message names file, line and reason.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "suite.jsonl"
        ...     _ = path.write_text(json.dumps(single_object_record("cow")))
        ...     read_records(path)
        ({'tag': 'single_object', 'include': [{'class': 'cow', 'count': 1}], 'prompt': 'a photo of a cow'},)
    """
    records = []
    # Split as bytes: `str.splitlines` also splits at U+2028, which JSON allows within a string.
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                records.append(check_record(parse_json(line.decode(), "the line")))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not records:
        raise ValueError(f"{path} holds no record; a line should be a JSON object with tag, include and prompt.")
    return tuple(records)


# The calls of the generator and their order are those of the official script: any other order gives other prompts.


def _choose(words: tuple[str, ...], rng: np.random.Generator, size: int) -> list[str]:
    return [words[index] for index in rng.choice(len(words), size=size, replace=False)]


def _choose_one(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.choice(len(words))]


def _draw_two_objects(rng: np.random.Generator) -> dict[str, Any]:
    return two_object_record(*_choose(OBJECT_NAMES, rng, 2))


def _draw_counting(rng: np.random.Generator) -> dict[str, Any]:
    name = _choose_one(OBJECT_NAMES, rng)
    return counting_record(name, int(rng.integers(2, 4, endpoint=True)))


def _draw_color(rng: np.random.Generator) -> dict[str, Any]:
    name = _choose_one(_COLORED, rng)
    return color_record(name, _choose_one(COLORS, rng))


def _draw_position(rng: np.random.Generator) -> dict[str, Any]:
    name, other = _choose(OBJECT_NAMES, rng, 2)
    return position_record(name, _choose_one(RELATIONS, rng), other)


def _draw_color_attribution(rng: np.random.Generator) -> dict[str, Any]:
    first, second = _choose(_COLORED, rng, 2)
    first_color, second_color = _choose(COLORS, rng, 2)
    return color_attribution_record((first_color, first), (second_color, second))


_COLORED = tuple(name for name in OBJECT_NAMES if name != "person")
"""GenEval has no prompt with a coloured person."""
