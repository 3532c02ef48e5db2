"""Draws scenes from signed distance functions, with antialiased edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fk_reward.shapes.palette import BACKGROUND, COLORS, OUTLINES
from fk_reward.shapes.scene import Scene, SceneObject


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
    return (0.5 - distance * size * image_size).clamp_(0.0, 1.0)


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
    for shape in {obj.shape: None for _, obj in placed}:
        indices, objects = zip(*((i, obj) for i, obj in placed if obj.shape == shape), strict=True)
        paint = torch.tensor([COLORS[obj.color] for obj in objects]) / 255 - background
        drawn = _coverage(objects, shape, image_size).unsqueeze(1) * paint[:, :, None, None]
        images.index_add_(0, torch.tensor(indices), drawn)
    return images.clamp_(0.0, 1.0)
