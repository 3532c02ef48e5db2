"""Names, colours and outlines of the shapes world."""

from __future__ import annotations

import math

BACKGROUND: tuple[int, int, int] = (244, 244, 240)
"""sRGB colour of the canvas, 0 to 255."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (245, 205, 40),
    "purple": (150, 50, 180),
    "orange": (245, 130, 30),
    "black": (30, 30, 35),
}
"""Colour name to sRGB, 0 to 255."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond")
"""Names of the six shapes."""

Outline = tuple[tuple[float, float], ...]


def _regular(num_vertices: int, *, inner: float | None = None, first_angle: float = 90.0) -> Outline:
    """Regular polygon, or a star when `inner` is given (every second vertex at that radius)."""
    radii = [1.0] * num_vertices if inner is None else [1.0, inner] * num_vertices
    angles = [math.radians(first_angle + 360.0 * i / len(radii)) for i in range(len(radii))]
    return tuple((r * math.cos(a), -r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def _plus(arm: float) -> Outline:
    """Plus sign with arms of length 1 and half-width `arm`."""
    quarter = ((1.0, -arm), (1.0, arm), (arm, arm))
    return tuple(
        (x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a))
        for a in (0.0, math.pi / 2, math.pi, 3 * math.pi / 2)
        for x, y in quarter
    )


def _centred(outline: Outline) -> Outline:
    """Moves the centroid to the origin and scales the area to that of the unit circle."""
    edges = list(zip(outline, outline[1:] + outline[:1], strict=True))
    cross = [x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in edges]
    area = sum(cross) / 2
    cx = sum((x0 + x1) * c for ((x0, _), (x1, _)), c in zip(edges, cross, strict=True)) / (6 * area)
    cy = sum((y0 + y1) * c for ((_, y0), (_, y1)), c in zip(edges, cross, strict=True)) / (6 * area)
    scale = math.sqrt(math.pi / abs(area))
    return tuple(((x - cx) * scale, (y - cy) * scale) for x, y in outline)


OUTLINES: dict[str, Outline] = {
    "square": _centred(_regular(4, first_angle=45.0)),
    "triangle": _centred(_regular(3)),
    "star": _centred(_regular(5, inner=0.45)),
    "cross": _centred(_plus(0.34)),
    "diamond": _centred(((0.0, -1.0), (0.64, 0.0), (0.0, 1.0), (-0.64, 0.0))),
}
"""Vertices `(x, y)` of the polygonal shapes, y pointing down, centroid 0 and area pi; the circle is the unit circle."""

EXTENTS: dict[str, float] = {"circle": 1.0} | {
    name: max(math.hypot(x, y) for x, y in outline) for name, outline in OUTLINES.items()
}
"""Largest distance of an outline from its centroid, in units of the object's size."""
