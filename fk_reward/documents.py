"""JSON and YAML from users: read in linear time and bounded memory, or one error that names the source.

Python's JSON reader raises RecursionError on a document of 1,000 brackets, and on a number of 5,000 digits a ValueError
that is not a JSONDecodeError. YAML's aliases let ten lines expand to a billion values. Read files from elsewhere with
these functions, whose only error is ValueError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

MAX_DEPTH = 100
"""Levels of lists and mappings in a document; settings have five, data rows three."""

MAX_VALUES = 100_000
"""Values of a YAML document once every alias is written out."""

_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_OTHER_THAN_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[^"\[\]{}]+', re.DOTALL)


def parse_json(text: str, source: object, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Read JSON.

    Args:
        text: the document.
        source: where it is from, for the message.
        parse_constant: what `NaN`, `Infinity` and `-Infinity` become, see `json.loads`; None for the floats.

    Raises:
        ValueError: it is not JSON, is nested more than `MAX_DEPTH` levels, or holds a number of thousands of digits.

    Example:
        >>> parse_json("[" * 5000, "rows.json")
        Traceback (most recent call last):
        ValueError: rows.json: nested more than 100 levels, which no data of this kind is.
    """
    _check_depth(text, source, limit=MAX_DEPTH)
    try:
        return json.loads(text, parse_constant=parse_constant)
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from error


def parse_yaml(text: str, source: object) -> Any:
    """Read YAML of plain values. Anchors may be used often, but not to build a document without end.

    Args:
        text: the document.
        source: where it is from, for the message.

    Raises:
        ValueError: it is not YAML, is nested more than `MAX_DEPTH` levels, or its aliases contain themselves or expand
            to more than `MAX_VALUES` values.

    Example:
        >>> parse_yaml("{a: &x [1, 2], b: *x}", "run.yaml")
        {'a': [1, 2], 'b': [1, 2]}
        >>> parse_yaml("a: &x [*x]", "run.yaml")
        Traceback (most recent call last):
        ValueError: run.yaml: an alias is inside its own anchor, which has no end.
    """
    # PyYAML takes quadratic time for brackets, and quotes are not looked at here: a limit far above any settings.
    _check_depth(text, source, limit=3 * MAX_DEPTH, strings=False)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise ValueError(_too_deep(source)) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not valid YAML: {error}") from error
    if node is None:
        return None
    _count_values(node, source)  # on the nodes: PyYAML writes the aliases out when it constructs the document
    try:
        return yaml.SafeLoader("").construct_document(node)  # type: ignore[no-untyped-call]
    # All but the first come from PyYAML's dates: 2021-02-30, or a text that is tagged as one.
    except (yaml.YAMLError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{source}: not valid YAML: {error}") from error


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a list or dictionary of them; tensors and functions are not.

    Example:
        >>> is_plain([1, "a", None]), is_plain(is_plain)
        (True, False)
    """
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def plain(value: Any) -> Any:
    """The same value as JSON gives it back: lists for tuples, texts for infinite numbers.

    Example:
        >>> plain({"sizes": (1, 2), "lambda_min_clipped": -math.inf})
        {'sizes': [1, 2], 'lambda_min_clipped': '-inf'}
    """
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _check_depth(text: str, source: object, *, limit: int, strings: bool = True) -> None:
    """Count brackets before the document is parsed, outside JSON's strings where there are such."""
    if text.count("[") + text.count("{") <= limit:
        return
    depth = 0
    for bracket in (_OTHER_THAN_BRACKETS if strings else _NO_BRACKET).sub("", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > limit:
            raise ValueError(_too_deep(source))


def _too_deep(source: object) -> str:
    return f"{source}: nested more than {MAX_DEPTH} levels, which no data of this kind is."


def _count_values(node: yaml.Node, source: object) -> int:
    """Values below a node with all aliases written out; each node is visited once, so that the count is linear."""
    counts: dict[int, int | None] = {}

    def count(node: yaml.Node, depth: int) -> int:
        known = counts.get(id(node), 0)
        if known is None:  # it is being counted further up
            raise ValueError(f"{source}: an alias is inside its own anchor, which has no end.")
        if known:
            return known
        if depth > MAX_DEPTH:
            raise ValueError(_too_deep(source))
        counts[id(node)] = None
        counts[id(node)] = total = 1 + sum(count(child, depth + 1) for child in _children(node))
        if total > MAX_VALUES:
            raise ValueError(f"{source}: its aliases expand to more than {MAX_VALUES:,} values.")
        return total

    return count(node, 1)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
