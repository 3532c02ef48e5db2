"""An object that a detector has found, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels from the upper left corner; x1 and y1 are the first that are outside."""

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
"""Scores must be above it; of the task `counting`, where one object too many is a mistake, above the second."""

MAX_OBJECTS = 16
"""At most this many objects of a class, those of the highest scores."""


@dataclass(frozen=True, eq=False)
class Detection:
    """An object in a picture.

    Attributes:
        box: where it is.
        score: how sure the detector is, in [0, 1].
        mask: (H, W) bool, its pixels; None from a detector that tells boxes only.

    Raises:
        ValueError: the box is empty.

    Example:
        >>> Detection((10.0, 20.0, 30.0, 60.0), 0.95).score
        0.95

    H, W: size of the picture.
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
    """Choose the detections that count in a task: the surest first, none below the threshold, at most 16 of a class.

    As `evaluate_image` in `evaluation/evaluate_images.py` of github.com/djghosh13/geneval with its default options.
    That script can also suppress boxes that overlap others of their class, but its default bound on the overlap is 1,
    which suppresses none, and Mask2Former needs no suppression: each of its queries is an object of its own.

    Args:
        objects: class -> what was found of it, in any order.
        tag: the record's task.

    Returns:
        Class -> its detections, by falling score; classes of which nothing is left are missing.

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
