"""The four spatial relations, one rule for scenes and for verified pictures."""

from __future__ import annotations

import math

RELATIONS: dict[str, tuple[float, float]] = {
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}
"""Relation to the direction `(x, y)` from the second object to the first, y pointing down."""

MIN_ALIGNMENT = 0.5
"""A relation holds within 60 degrees of its direction: GenEval's `relative_position`, between centroids."""


def alignment(first: tuple[float, float], second: tuple[float, float], relation: str) -> float:
    """Cosine between a relation's direction and the offset of the first centre from the second.

    Args:
        first: Centre `(x, y)` of the object named first, y pointing down.
        second: Centre of the other object.
        relation: One of `RELATIONS`.

    Returns:
        A value in [-1, 1]; the relation holds where it exceeds `MIN_ALIGNMENT`.

    Examples:
        >>> alignment((0.2, 0.5), (0.8, 0.5), "left of")
        1.0
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    direction = RELATIONS[relation]
    return (dx * direction[0] + dy * direction[1]) / max(math.hypot(dx, dy), 1e-9)
