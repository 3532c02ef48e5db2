"""GenEval's rules: does what was found in a picture fulfil a record?

The rules are those of `evaluate` and `relative_position` in `evaluation/evaluate_images.py` of
github.com/djghosh13/geneval (Ghosh et al. 2023, arXiv 2310.11513). No picture and no model comes in here.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fk_reward.benchmarks.geneval.detection import Box, Detection

ColorOf: TypeAlias = Callable[[str, Sequence[Detection]], Sequence[str]]
"""Class and detections of it -> the colour of each."""

POSITION_OFFSET = 0.1
"""How far apart two centres must be along an axis to be apart at all, as a share of the summed sizes."""

MIN_SHARE = 0.5
"""How much of the distance must lie along an axis, what the offset has taken being left out."""

NEGLIGIBLE = 1e-3
"""Distances below this, in pixels, are none."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a picture.

    Attributes:
        correct: it shows what its record says.
        reason: what is missing or wrong, a line each; empty where it is correct.
        details: class -> x0, y0, x1, y1 and score of each object that counted, as the official results have them.
    """

    correct: bool
    reason: str
    details: Mapping[str, list[list[float]]] = field(default_factory=dict)


def relative_position(first: Box, second: Box) -> frozenset[str]:
    """The relations of one box to another: none where the centres are near, two on a diagonal.

    From each component of the distance between the centres, 0.1 of the summed sizes along that axis is taken off; a
    relation holds when what remains is more than half of the whole distance.

    Args:
        first: the box that is left of, right of, above or below.
        second: the box that it is related to.

    Example:
        >>> relative_position((0, 0, 10, 10), (40, 0, 50, 10))
        frozenset({'left of'})
        >>> relative_position((0, 0, 10, 10), (2, 0, 12, 10))
        frozenset()
    """
    offsets = [(first[i] + first[i + 2] - second[i] - second[i + 2]) / 2 for i in (0, 1)]
    sizes = [first[i + 2] - first[i] + second[i + 2] - second[i] for i in (0, 1)]
    beyond = [max(abs(d) - POSITION_OFFSET * size, 0.0) for d, size in zip(offsets, sizes, strict=True)]
    if max(beyond) < NEGLIGIBLE:
        return frozenset()
    x, y = (math.copysign(rest, d) / math.hypot(*offsets) for rest, d in zip(beyond, offsets, strict=True))
    shares = {"left of": -x, "right of": x, "above": -y, "below": y}
    return frozenset(relation for relation, share in shares.items() if share > MIN_SHARE)


def judge(metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], color_of: ColorOf) -> Verdict:
    """Judge a picture by what was found in it.

    Every clause of `include` must hold: enough objects of its class; of the surest of them, as many as are asked for,
    the colour, and the relation to all objects of the clause that its position names. Other objects do not matter but
    for `exclude`: no class of it may be there as often as it says.

    Args:
        metadata: a record of the suite.
        objects: class -> detections that count, the surest first, as `select_detections` gives them.
        color_of: names colours; asked only where a record tells one.

    Example:
        >>> record = {"include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}]}
        >>> judge(record, {"cow": [Detection((0, 0, 8, 8), 0.9)]}, color_of=None).reason
        'wanted 2 of cow, found 1'
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", []):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        reason = _too_few(wanted, found) or _wrong_color(wanted, found, color_of) or _wrong_place(wanted, found, groups)
        groups.append(None if reason else found)
        reasons.append(reason)
    reasons += [_too_many(unwanted, objects) for unwanted in metadata.get("exclude", [])]
    reasons = [reason for reason in reasons if reason]
    details = {name: [[*found.box, found.score] for found in group] for name, group in objects.items()}
    return Verdict(not reasons, "\n".join(reasons), details)


def _too_few(wanted: Mapping[str, Any], found: Sequence[Detection]) -> str:
    if len(found) == wanted["count"]:
        return ""
    return f"wanted {wanted['count']} of {wanted['class']}, found {len(found)}"


def _too_many(unwanted: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]]) -> str:
    found = len(objects.get(unwanted["class"], ()))
    if found < unwanted["count"]:
        return ""
    return f"wanted fewer than {unwanted['count']} of {unwanted['class']}, found {found}"


def _wrong_color(wanted: Mapping[str, Any], found: Sequence[Detection], color_of: ColorOf) -> str:
    if "color" not in wanted:
        return ""
    colors = color_of(wanted["class"], found)
    if len(colors) != len(found):
        raise ValueError(f"color_of should name a colour for each of {len(found)} detections, got {len(colors)}.")
    counts = Counter(colors)
    if counts[wanted["color"]] >= wanted["count"]:
        return ""
    seen = ", ".join(f"{count} {color}" for color, count in counts.items())
    return f"wanted {wanted['count']} {wanted['color']} {wanted['class']}, found {seen}"


def _wrong_place(
    wanted: Mapping[str, Any], found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str:
    if "position" not in wanted:
        return ""
    relation, target = wanted["position"]
    others = groups[target]
    if others is None:
        return f"nothing that {wanted['class']} could be {relation}"
    for one, other in itertools.product(found, others):
        relations = relative_position(one.box, other.box)
        if relation not in relations:
            actual = " and ".join(sorted(relations)) or "neither beside nor above nor below"
            return f"wanted {wanted['class']} {relation} the other, found it {actual}"
    return ""
