"""The records of a suite: GenEval's own 553, drawn as its authors drew them, or those of a file in the same format."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fk_reward.benchmarks.geneval.object_names import COLORS, OBJECT_NAMES, RELATIONS
from fk_reward.benchmarks.geneval.record_check import check_record
from fk_reward.benchmarks.geneval.records import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)
from fk_reward.documents import parse_json

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
            ones; then take these from their file with `read_records`.

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
            "read evaluation_metadata.jsonl of github.com/djghosh13/geneval in their place."
        )
    return tuple(json.loads(line) for line in lines)


def read_records(path: str | os.PathLike[str]) -> tuple[dict[str, Any], ...]:
    """Read the records of another suite in the format of `evaluation_metadata.jsonl`, a JSON object a line.

    Args:
        path: the file; blank lines are skipped.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is no record, or there is none; the message names file, line and reason.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "suite.jsonl"
        ...     _ = path.write_text(json.dumps(single_object_record("cow")))
        ...     read_records(path)
        ({'tag': 'single_object', 'include': [{'class': 'cow', 'count': 1}], 'prompt': 'a photo of a cow'},)
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                records.append(check_record(parse_json(line.decode(), "the line")))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not records:
        raise ValueError(f"{path} holds no record; a line should be a JSON object with tag, include and prompt.")
    return tuple(records)


def _choose(words: tuple[str, ...], rng: np.random.Generator, size: int) -> list[str]:
    """Different words; the number of choices and their order are the official generator's."""
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
"""No prompt asks for a person of a colour."""
