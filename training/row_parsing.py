"""From rows with the keys of public data sets to records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from fk_reward.training.image_reward_db import RATINGS, RatedImage, rated_image, rating_column
from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import LabelledImage, PreferencePair
from fk_reward.training.row_files import Row
from fk_reward.training.row_values import finite_number, is_missing, plain_value, short, truth_value
from fk_reward.training.validation import RowProblem

Record: TypeAlias = "PreferencePair | LabelledImage | RatedImage"
RecordT = TypeVar("RecordT")

KINDS: dict[str, frozenset[str]] = {
    "pairs": frozenset({"chosen_path", "chosen_image", "reject_path", "rejected_image"}),
    "rated images": frozenset(RATINGS.values()),
    "labelled images": frozenset({"label", "safety_label"}),
}
"""Kind of a row -> keys of which any one tells it."""

_SAFETY = {"safe": True, "unsafe": False}


def parse_rows(
    rows: Sequence[tuple[str, Row]], *, root: Path | None = None, dimension: str | None = None
) -> tuple[list[Record], list[RowProblem]]:
    """Make a record of each row; rows of another kind than the first are problems.

    Args:
        rows: as `read_rows` gives them.
        root: folder that relative paths of images are relative to.
        dimension: rating to read of rated images.

    Raises:
        ValueError: for rated images without a dimension that they are rated for.

    Example:
        >>> records, problems = parse_rows([("a:1", {"prompt": "a cat", "path": "cat.png", "label": 1}), ("a:2", {})])
        >>> records[0].label, str(problems[0])
        (True, 'a:2: has the keys [], which are none of pairs, rated images, labelled images')
    """
    kind = next((kind for _, row in rows if (kind := _kind(row))), None)
    column = rating_column(dimension) if kind == "rated images" else ""
    return collect(rows, lambda row, origin: _parse(row, kind, column=column, root=root, origin=origin))


def collect(
    rows: Sequence[tuple[str, Row]], parse: Callable[[Mapping[str, Any], str], RecordT]
) -> tuple[list[RecordT], list[RowProblem]]:
    """Records of the rows that can be parsed, and what is wrong with the others.

    Args:
        rows: as `read_rows` gives them.
        parse: makes a record of a row and its origin; its TypeError or ValueError becomes a problem.
    """
    records: list[RecordT] = []
    problems: list[RowProblem] = []
    for origin, row in rows:
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            records.append(parse(row, origin))
        except (TypeError, ValueError) as error:
            problems.append(RowProblem(origin, str(error)))
    return records, problems


def _kind(row: Row) -> str | None:
    return (
        None if isinstance(row, RowProblem) else next((kind for kind, keys in KINDS.items() if keys & set(row)), None)
    )


def _parse(row: Mapping[str, Any], kind: str | None, *, column: str, root: Path | None, origin: str) -> Record:
    own_kind = _kind(row)
    if own_kind is None:
        raise ValueError(f"has the keys {sorted(map(str, row))}, which are none of {', '.join(KINDS)}")
    if own_kind != kind:
        raise ValueError(f"is one of {own_kind} among {kind}: give each kind its own file")
    if kind == "pairs":
        return _pair(row, root, origin)
    if kind == "labelled images":
        return _labelled(row, root, origin)
    return rated_image(row, column=column, root=root, origin=origin)


def _pair(row: Mapping[str, Any], root: Path | None, origin: str) -> PreferencePair:
    prompt, rejected_prompt = _prompts(first_of(row, "prompt", "text"))
    return PreferencePair(
        prompt=prompt,
        chosen=ImageSource.of(first_of(row, "chosen_path", "chosen_image"), root=root),
        rejected=ImageSource.of(first_of(row, "reject_path", "rejected_image"), root=root),
        rejected_prompt=None if rejected_prompt == prompt else rejected_prompt,
        margin=_margin(row.get("c_rate"), row.get("r_rate")),
        origin=origin,
    )


def _labelled(row: Mapping[str, Any], root: Path | None, origin: str) -> LabelledImage:
    prompt = first_of(row, "prompt", "text", optional=True)
    return LabelledImage(
        prompt="" if prompt is None else prompt,
        image=ImageSource.of(first_of(row, "path", "image"), root=root),
        label=_label(row.get("label"), row.get("safety_label")),
        origin=origin,
    )


def first_of(row: Mapping[str, Any], *keys: str, optional: bool = False) -> Any:
    """Value of the first of several keys that a row has, where None and NaN count as absent.

    Raises:
        ValueError: when it has none of them; if `optional`, only when the keys themselves are absent.

    Example:
        >>> first_of({"path": None, "image": "a.png"}, "path", "image")
        'a.png'
    """
    found = [row[key] for key in keys if not is_missing(row.get(key))]
    if not found and not (optional and set(keys) & set(row)):
        raise ValueError(f"lacks {' or '.join(keys)}; it has {sorted(map(str, row))}")
    return found[0] if found else None


def _prompts(prompt: Any) -> tuple[str, str]:
    """One prompt for both images, or one for each."""
    if isinstance(prompt, str):
        return str(prompt), str(prompt)
    if isinstance(prompt, (list, tuple, np.ndarray)) and len(prompt) == 2:
        first, second = map(plain_value, prompt)
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise TypeError(f"prompt must be a string or two strings, got {short(prompt)}")


def _margin(chosen: Any, rejected: Any) -> float | None:
    if chosen is None and rejected is None:
        return None
    better, worse = finite_number(chosen, "c_rate"), finite_number(rejected, "r_rate")
    if better < worse:
        raise ValueError(f"the chosen image is rated {chosen}, below the rejected one's {rejected}")
    return better - worse


def _label(label: Any, safety_label: Any) -> bool:
    """The label as a bool; where a row has a number and a word they must agree."""
    found = []
    if not is_missing(label):
        found.append(truth_value(label, "label"))
    if not is_missing(safety_label):
        word = safety_label.lower() if isinstance(safety_label, str) else ""
        if word not in _SAFETY:
            raise ValueError(f"safety_label must be Safe or Unsafe, got {short(safety_label)}")
        found.append(_SAFETY[word])
    if len(set(found)) != 1:
        raise ValueError(f"label {label!r} and safety_label {safety_label!r} " + ("differ" if found else "are empty"))
    return found[0]
