"""Pictures drawn for the self-test: stop signs and clocks, which look much like their drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SKY, GROUND, POLE, DARK, WHITE = (166, 200, 232), (122, 138, 104), (130, 130, 134), (30, 30, 32), (245, 245, 245)
PAINTS: dict[str, tuple[int, int, int]] = {"red": (196, 26, 32), "yellow": (250, 210, 30)}

_LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "S": (((1, 0), (0, 0), (0, 0.5), (1, 0.5), (1, 1), (0, 1)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "O": (((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),),
    "P": (((0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5)),),
}
"""Strokes of letters in the unit square, y pointing down; drawn by hand, because fonts differ between machines."""


@dataclass(frozen=True)
class DrawnObject:
    """A stop sign or a clock; lengths are fractions of the picture's side.

    Attributes:
        name: `"stop sign"` or `"clock"`.
        color: of its face, one of `PAINTS`.
        x: centre from the left.
        y: centre from the top.
        radius: of the circle around it.
    """

    name: str
    color: str
    x: float
    y: float
    radius: float


def draw_scene(objects: Sequence[DrawnObject], *, size: int = 512) -> Image.Image:
    """Draw objects in front of sky and ground.

    Args:
        objects: apart from each other.
        size: side in pixels.

    Returns:
        An RGB picture.

    Example:
        >>> picture = draw_scene([DrawnObject("clock", "yellow", 0.5, 0.5, 0.25)], size=64)
        >>> picture.size, picture.getpixel((24, 38))
        ((64, 64), (250, 210, 30))
    """
    side = 4 * size
    image = Image.new("RGB", (side, side), SKY)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, round(0.78 * side), side, side), fill=GROUND)
    for obj in objects:
        draw = _draw_stop_sign if obj.name == "stop sign" else _draw_clock
        draw(pen, obj.x * side, obj.y * side, obj.radius * side, PAINTS[obj.color])
    return image.resize((size, size), Image.Resampling.BOX)


def _draw_stop_sign(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, int, int]) -> None:
    pen.rectangle((x - 0.05 * radius, y, x + 0.05 * radius, y + 2.4 * radius), fill=POLE)
    for share, color in ((1.0, WHITE), (0.93, paint)):
        angles = [math.radians(22.5 + 45 * corner) for corner in range(8)]
        pen.polygon([(x + share * radius * math.cos(a), y + share * radius * math.sin(a)) for a in angles], fill=color)
    width, height, gap = 0.26 * radius, 0.5 * radius, 0.12 * radius
    left, top = x - 2 * width - 1.5 * gap, y - height / 2
    for place, letter in enumerate("STOP"):
        for stroke in _LETTERS[letter]:
            points = [(left + place * (width + gap) + u * width, top + v * height) for u, v in stroke]
            pen.line(points, fill=WHITE, width=round(0.09 * radius), joint="curve")


def _draw_clock(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, int, int]) -> None:
    for share, color in ((1.0, DARK), (0.9, paint)):
        pen.ellipse((x - share * radius, y - share * radius, x + share * radius, y + share * radius), fill=color)
    hands = [(-60, 0.0, 0.45, 0.08), (36, 0.0, 0.68, 0.06)]  # ten past ten: degrees from the top, ends, thickness
    ticks = [(30 * hour, 0.72 if hour % 3 == 0 else 0.78, 0.84, 0.05) for hour in range(12)]
    for degrees, start, end, width in hands + ticks:
        dx, dy = math.sin(math.radians(degrees)) * radius, -math.cos(math.radians(degrees)) * radius
        line = (x + start * dx, y + start * dy, x + end * dx, y + end * dy)
        pen.line(line, fill=DARK, width=round(width * radius))
