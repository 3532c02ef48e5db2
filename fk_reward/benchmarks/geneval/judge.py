"""GenEval's rules: do the objects found in an image match a record?"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from fk_reward.benchmarks.task import Verdict

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels from the upper left corner; x1 and y1 are the first that are outside."""

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
"""Scores must be above the first; in the task `counting`, where one object too many is a mistake, above the second."""

MAX_OBJECTS = 16
"""At most this many objects of a class, those of the highest scores."""


@dataclass(frozen=True, eq=False)
class Detection:
    """An object in an image.

    Attributes:
        box: where it is.
        score: how sure the detector is, in [0, 1].
        mask: (H, W) bool, its pixels; None from a detector of boxes only.

    Raises:
        ValueError: the box is empty.

    Example:
        >>> Detection((10.0, 20.0, 30.0, 60.0), 0.95).score
        0.95

    H, W: size of the image.
    """

    box: Box
    score: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the box."""
        x0, y0, x1, y1 = self.box
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"box should be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {self.box}.")


def select_detections(objects: Mapping[str, Sequence[Detection]], tag: str) -> dict[str, list[Detection]]:
    """Choose the detections that count in a task: the surest first, all above the threshold, at most 16 of a class.

    As `evaluate_image` in `evaluation/evaluate_images.py` of github.com/djghosh13/geneval with its default options.
    That script can also suppress boxes that overlap others of their class, but its default bound on the overlap is 1,
    which suppresses nothing, and Mask2Former needs no suppression: each of its queries is an object of its own.

    Args:
        objects: class -> what was found of it, in any order.
        tag: the record's task.

    Returns:
        Class -> its detections, by falling score; classes without one are missing.

    Example:
        >>> cows = [Detection((0, 0, 8, 8), score) for score in (0.3, 0.5, 0.95)]
        >>> [cow.score for cow in select_detections({"cow": cows}, "single_object")["cow"]]
        [0.95, 0.5]
        >>> [cow.score for cow in select_detections({"cow": cows}, "counting")["cow"]]
        [0.95]
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ranked = {name: sorted(found, key=lambda detection: -detection.score) for name, found in objects.items()}
    kept = {name: [d for d in found if d.score > threshold][:MAX_OBJECTS] for name, found in ranked.items()}
    return {name: found for name, found in kept.items() if found}


ColorOf: TypeAlias = Callable[[str, Sequence[Detection]], Sequence[str]]
"""Class and detections of it -> the colour of each."""

POSITION_OFFSET = 0.1
"""How far apart two centres must be along an axis to count as apart, as a share of the summed sizes."""

MIN_SHARE = 0.5
"""How much of the distance must be left along an axis after the offset is subtracted."""

NEGLIGIBLE = 1e-3
"""Shorter distances, in pixels, count as 0."""


def relative_position(first: Box, second: Box) -> frozenset[str]:
    """Relations of one box to another: none if the centres are near, two on a diagonal.

    From each component of the distance between the centres, 0.1 of the summed sizes along that axis is subtracted; a
    relation holds if the rest is more than half of the distance.

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
    """Judge an image by the objects found in it.

    Every clause of `include` must hold: enough objects of its class; of the surest of them, as many as are asked for,
    the colour, and the relation to all objects of the clause that its position names. Other objects matter only for
    `exclude`: no class of it may occur as often as it says.

    Args:
        metadata: a record of the suite.
        objects: class -> detections that count, the surest first, as `select_detections` gives them.
        color_of: names colours; called only if a record names one.

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
        groups.append(None if reason else found)  # as upstream: a failed clause is not a target of a position
        reasons.append(reason)
    reasons += [_too_many(unwanted, objects) for unwanted in metadata.get("exclude", [])]
    reasons = [reason for reason in reasons if reason]
    details = {name: [[*found.box, found.score] for found in group] for name, group in objects.items()}
    return Verdict(not reasons, "\n".join(reasons), details)


def _too_few(wanted: Mapping[str, Any], found: Sequence[Detection]) -> str:
    if len(found) == wanted["count"]:  # `found` holds at most so many
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
        return f"no target for {wanted['class']} to be {relation}"
    for one, other in itertools.product(found, others):
        relations = relative_position(one.box, other.box)
        if relation not in relations:
            actual = " and ".join(sorted(relations)) or "neither beside nor above nor below"
            return f"wanted {wanted['class']} {relation} the other, found it {actual}"
    return ""
