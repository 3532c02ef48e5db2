"""The world of coloured shapes: palette, relations, scenes, and their rendering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    return (dx * direction[0] + dy * direction[1]) / max(math.hypot(dx, dy), 1e-9)  # 0 for equal centres


@dataclass(frozen=True)
class SceneObject:
    """One shape on the canvas; lengths are fractions of the canvas side.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        x: Centroid from the left, in [0, 1].
        y: Centroid from the top, in [0, 1].
        size: Radius of the circle that has the same area as the shape.
        rotation: Degrees, clockwise.

    Examples:
        >>> SceneObject("star", "red", x=0.5, y=0.5, size=0.1).extent > 0.1
        True
    """

    shape: str
    color: str
    x: float
    y: float
    size: float
    rotation: float = 0.0

    def __post_init__(self) -> None:
        """Checks the two names.

        Raises:
            ValueError: The shape or the colour is not of this world.
        """
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {self.shape!r}.")
        if self.color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}; got {self.color!r}.")

    @property
    def extent(self) -> float:
        """Radius of the smallest disc around the centroid that covers the shape."""
        return self.size * EXTENTS[self.shape]


@dataclass(frozen=True)
class Scene:
    """Objects on one canvas that do not touch each other."""

    objects: tuple[SceneObject, ...]


def signed_distance(x: Tensor, y: Tensor, shape: str) -> Tensor:
    """Distance to the outline of a shape of unit size, negative inside.

    The distance to a polygon is the least distance to an edge, its sign the parity of the edges that a horizontal ray
    crosses (the even-odd rule).

    Args:
        x: `(...)`, rightward from the centroid, in units of the shape's size.
        y: `(...)`, downward, same unit.
        shape: One of `SHAPES`.

    Returns:
        `(...)`, same unit.

    Examples:
        >>> signed_distance(torch.tensor([0.0, 3.0]), torch.tensor([0.0, 4.0]), "circle")
        tensor([-1.,  4.])
    """
    if shape == "circle":
        return torch.hypot(x, y) - 1.0
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    outline = OUTLINES[shape]
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        edge_x, edge_y, dx, dy = x1 - x0, y1 - y0, x - x0, y - y0
        along = ((dx * edge_x + dy * edge_y) / (edge_x**2 + edge_y**2)).clamp_(0.0, 1.0)
        squared = (dx - along * edge_x).square_() + (dy - along * edge_y).square_()
        nearest = torch.minimum(nearest, squared)
        inside ^= ((dy < 0) != (dy < edge_y)) & (dx < dy * (edge_x / edge_y if edge_y else 0.0))
    distance = nearest.sqrt_()
    return torch.where(inside, -distance, distance)


def _coverage(objects: Sequence[SceneObject], shape: str, image_size: int) -> Tensor:
    """Share of each pixel that each object covers, `(N, H, W)` in [0, 1]; all objects have that shape."""
    pixels = (torch.arange(image_size) + 0.5) / image_size
    table = torch.tensor([(o.x, o.y, o.size, o.rotation) for o in objects], dtype=torch.float32)
    centre_x, centre_y, size, degrees = table.T[:, :, None, None]
    dx, dy = (pixels - centre_x) / size, (pixels[:, None] - centre_y) / size
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    distance = signed_distance(cos * dx + sin * dy, cos * dy - sin * dx, shape)
    return (0.5 - distance * size * image_size).clamp_(0.0, 1.0)  # edges are one pixel wide: antialiasing


def render(scenes: Sequence[Scene], *, image_size: int = 64) -> Tensor:
    """Draws scenes.

    Args:
        scenes: B scenes.
        image_size: Side in pixels.

    Returns:
        `(B, 3, image_size, image_size)` float32 in [0, 1].

    Examples:
        >>> scene = Scene((SceneObject("square", "red", x=0.5, y=0.5, size=0.2),))
        >>> image = render([scene], image_size=16)[0]
        >>> (image[:, 8, 8] * 255).round()
        tensor([220.,  40.,  40.])
    """
    background = torch.tensor(BACKGROUND) / 255
    images = background[:, None, None].repeat(len(scenes), 1, image_size, image_size)
    placed = [(i, obj) for i, scene in enumerate(scenes) for obj in scene.objects]
    # All objects of one shape at once; they do not overlap, so that paint can be added in any order.
    for shape in {obj.shape: None for _, obj in placed}:
        indices, objects = zip(*((i, obj) for i, obj in placed if obj.shape == shape), strict=True)
        paint = torch.tensor([COLORS[obj.color] for obj in objects]) / 255 - background
        drawn = _coverage(objects, shape, image_size).unsqueeze(1) * paint[:, :, None, None]
        images.index_add_(0, torch.tensor(indices), drawn)
    return images.clamp_(0.0, 1.0)
