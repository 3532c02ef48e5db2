"""Recognises the shape of a segment by its overlap with templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fk_reward.shapes.palette import BACKGROUND, COLORS, SHAPES
from fk_reward.shapes.render import signed_distance
from fk_reward.shapes.sampling import MAX_ROTATION
from fk_reward.shapes.segmentation import Segment, segments

GRID_SIZE = 32
GRID_EXTENT = 1.7
"""Half a side of the comparison grid, in radii of the disc with the segment's area."""

TEMPLATE_BLUR = 1.5
"""Blur of the second set of templates, in cells of the grid: decoders round the corners of small shapes."""

MIN_OVERLAP = 0.78
"""Least intersection over union with a template for a segment to count as a shape."""


@dataclass(frozen=True)
class DetectedObject:
    """An object seen in a picture.

    Attributes:
        shape: The best matching of `SHAPES`, or None when no overlap reaches `MIN_OVERLAP`.
        color: One of `COLORS`.
        x: Centroid from the left, in [0, 1] of the canvas.
        y: Centroid from the top.
        area: Share of the canvas.
        overlaps: Intersection over union with the best template of each shape, in the order of `SHAPES`.
    """

    shape: str | None
    color: str
    x: float
    y: float
    area: float
    overlaps: tuple[float, ...]


@cache
def _grid() -> tuple[Tensor, Tensor]:
    ticks = (torch.arange(GRID_SIZE) + 0.5) / GRID_SIZE * 2 - 1
    y, x = torch.meshgrid(ticks * GRID_EXTENT, ticks * GRID_EXTENT, indexing="ij")
    return x, y


@cache
def _templates() -> Tensor:
    """Coverage of every shape at three rotations, sharp and blurred, `(len(SHAPES), 6, GRID_SIZE * GRID_SIZE)`."""
    x, y = _grid()
    angles = torch.tensor([-0.75, 0.0, 0.75])[:, None, None].mul(MAX_ROTATION).deg2rad()
    turned_x, turned_y = angles.cos() * x + angles.sin() * y, angles.cos() * y - angles.sin() * x
    step = 2 * GRID_EXTENT / GRID_SIZE
    distances = torch.stack([signed_distance(turned_x, turned_y, shape) for shape in SHAPES])
    sharp = (0.5 - distances / step).clamp(0.0, 1.0)
    return torch.cat([sharp, _blurred(sharp)], dim=1).flatten(2)


def _blurred(images: Tensor) -> Tensor:
    """Gaussian blur along the last two dimensions, zeros outside."""
    ticks = torch.arange(images.shape[-1], dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((ticks[:, None] - ticks) / TEMPLATE_BLUR) ** 2)
    kernel = kernel / kernel.sum(1).max()
    return kernel @ images @ kernel.T


def template_overlaps(mask: Tensor) -> tuple[float, ...]:
    """Intersection over union of a mask with each shape, position and area removed.

    Args:
        mask: `(H, W)`, bool or coverage in [0, 1], not empty.

    Returns:
        One value in [0, 1] a shape, in the order of `SHAPES`; the best over three rotations, sharp and blurred.

    Examples:
        >>> from fk_reward.shapes import Scene, SceneObject, render
        >>> image = render([Scene((SceneObject("star", "black", x=0.4, y=0.6, size=0.2),))])[0]
        >>> overlaps = template_overlaps(image[0] < 0.5)
        >>> SHAPES[overlaps.index(max(overlaps))]
        'star'
    """
    mask = mask.float()
    height, width = mask.shape
    area = mask.sum()
    centre_x, centre_y = ((mask.sum(axis) * torch.arange(n)).sum() / area for axis, n in ((0, width), (1, height)))
    radius = (area / torch.pi).sqrt()
    x, y = _grid()
    points = torch.stack([(centre_x + radius * x + 0.5) / width, (centre_y + radius * y + 0.5) / height], -1) * 2 - 1
    seen = F.grid_sample(mask[None, None], points[None], align_corners=False).flatten()
    union = torch.maximum(seen, _templates()).sum(-1)
    return tuple((torch.minimum(seen, _templates()).sum(-1) / union).amax(-1).tolist())


def detect(image: Tensor) -> tuple[DetectedObject, ...]:
    """The objects of a picture, in reading order.

    Args:
        image: `(3, H, W)` in [0, 1], a picture of the shapes world.

    Examples:
        >>> from fk_reward.shapes import Scene, SceneObject, render
        >>> image = render([Scene((SceneObject("cross", "blue", x=0.5, y=0.25, size=0.15),))])[0]
        >>> [(obj.color, obj.shape, round(obj.y, 2)) for obj in detect(image)]
        [('blue', 'cross', 0.25)]
    """
    return tuple(_described(image, segment) for segment in segments(image))


def _coverage(image: Tensor, segment: Segment) -> Tensor:
    """Share of each pixel that the segment covers, judged by its colour between the background and the palette."""
    background = torch.tensor(BACKGROUND) / 255
    paint = torch.tensor(COLORS[segment.color]) / 255 - background
    pixels = image.detach().float().cpu().permute(1, 2, 0)
    share = ((pixels - background) @ paint / paint.square().sum()).clamp(0.0, 1.0)
    return share * F.max_pool2d(segment.mask[None].float(), 3, 1, 1)[0]


def _described(image: Tensor, segment: Segment) -> DetectedObject:
    height, width = segment.mask.shape
    overlaps = template_overlaps(_coverage(image, segment))
    rows, columns = segment.mask.nonzero(as_tuple=True)
    best = max(overlaps)
    return DetectedObject(
        shape=SHAPES[overlaps.index(best)] if best >= MIN_OVERLAP else None,
        color=segment.color,
        x=(columns.float().mean().item() + 0.5) / width,
        y=(rows.float().mean().item() + 0.5) / height,
        area=len(rows) / (height * width),
        overlaps=overlaps,
    )
