"""Is a line of a file a record? What is not understood is refused, because a judge would leave it out in silence."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from fk_reward.benchmarks.geneval.object_names import RELATIONS
from fk_reward.user_text import text_problem

_CLAUSE = {"class", "count"}


def check_record(record: object) -> dict[str, Any]:
    """Return a record as it came, or say what is wrong with it.

    Args:
        record: what a line of JSON held.

    Raises:
        ValueError: it is no record of the format that `records.py` tells about.

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
        raise ValueError(f"{what} has fields that no judge knows ({', '.join(unknown)}); known: {sorted(allowed)}.")
    return value


def _check_text(fields: dict[str, Any], name: str) -> None:
    if not isinstance(fields.get(name), str) or not fields[name].strip():
        raise ValueError(f"{name} should be a text, got {fields.get(name)!r}.")
    if (problem := text_problem(fields[name])) is not None:
        raise ValueError(f"{name}: {problem}")


def _check_clause(clause: object, place: str, *, allowed: Set[str]) -> None:
    fields = _checked_fields(clause, place, allowed=allowed)
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
