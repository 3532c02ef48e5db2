"""Finds the objects of an image: foreground, connected components, colours; and shapes by overlap with templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fk_reward.shapes.sampling import MAX_ROTATION
from fk_reward.shapes.scene import BACKGROUND, COLORS, SHAPES, signed_distance

FOREGROUND_DISTANCE = 0.3
"""Euclidean distance to the background, colours in [0, 1], beyond which a pixel belongs to an object."""

MIN_AREA = 20
"""Pixels of a 64 x 64 image; smaller specks are ignored (the smallest object drawn has 100)."""

MIN_COLOR_SHARE = 0.25
"""A component is split in two when a second colour holds this share of its core."""


@dataclass(frozen=True)
class Segment:
    """One coloured region: its pixels `(H, W)` bool and the name of its colour."""

    mask: Tensor
    color: str


def components(mask: Tensor, *, min_area: int = 1) -> Iterator[Tensor]:
    """8-connected components of a mask, in reading order.

    Each pixel starts with its own number; the largest number spreads through the mask until nothing changes. In a round
    a pixel takes the largest of its neighbours, and then what the pixel of that number has, so that few are needed.

    Args:
        mask: `(H, W)` bool.
        min_area: pixels of the smallest component that counts.

    Yields:
        `(H, W)` bool, one component.

    Examples:
        >>> [int(part.sum()) for part in components(torch.eye(3).bool())]
        [3]
    """
    # Falling numbers: the largest of a component is that of its first pixel, which gives the reading order below.
    total = mask.numel()
    labels = torch.arange(total, 0, -1).view_as(mask) * mask
    while True:
        spread = _largest_around(labels) * mask
        if torch.equal(spread, labels):
            break
        places = (total - spread).clamp(max=total - 1)  # of the pixels that these are the numbers of
        labels = spread.flatten()[places] * mask
    areas = labels[mask].bincount()
    for label in (areas >= min_area).nonzero().flatten().flip(0).tolist():
        yield labels == label


def _largest_around(labels: Tensor) -> Tensor:
    """The largest of each number and its eight neighbours, which are not negative; faster than `max_pool2d`."""
    padded = F.pad(labels, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return torch.maximum(torch.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def segments(image: Tensor) -> list[Segment]:
    """Splits an image into single-coloured connected regions.

    The colour of a pixel is the nearest of the palette. A component's colour is that of most pixels of its core (eroded
    by one pixel, since its edges are mixed with the background); one that holds two colours is split.

    Args:
        image: `(3, H, W)` in [0, 1].

    Returns:
        Regions of at least `MIN_AREA` pixels, in reading order.

    Examples:
        >>> from fk_reward.shapes import Scene, SceneObject, render
        >>> image = render([Scene((SceneObject("square", "red", x=0.5, y=0.5, size=0.2),))])[0]
        >>> [segment.color for segment in segments(image)]
        ['red']
    """
    pixels = image.detach().float().cpu().permute(1, 2, 0)
    background = torch.tensor(BACKGROUND) / 255
    palette = torch.tensor(list(COLORS.values())) / 255
    foreground = (pixels - background).norm(dim=-1) > FOREGROUND_DISTANCE
    nearest = torch.cdist(pixels.flatten(0, 1), palette).argmin(1).view_as(foreground)
    core = _eroded(foreground)
    found = components(foreground, min_area=MIN_AREA)
    return [segment for part in found for segment in _by_color(part, core & part, nearest)]


def _eroded(mask: Tensor) -> Tensor:
    return -F.max_pool2d(-mask[None].float(), 3, 1, 1)[0] > 0


def _by_color(part: Tensor, core: Tensor, nearest: Tensor) -> list[Segment]:
    """The segments of one component: itself, or the regions of its colours."""
    names = tuple(COLORS)
    core = core if core.any() else part  # a thin component has no core
    counts = nearest[core].bincount(minlength=len(names))
    main, second = counts.topk(2).indices.tolist()
    if counts[second] < MIN_COLOR_SHARE * core.sum():
        return [Segment(part, names[main])]
    return [
        Segment(region, names[color])
        for color in (main, second)
        for region in components(part & (nearest == color), min_area=MIN_AREA)
    ]


GRID_SIZE = 32  # cells along a side of the grid on which shapes are compared
GRID_EXTENT = 1.7
"""Half a side of the comparison grid, in radii of the disc with the segment's area."""

TEMPLATE_BLUR = 1.5
"""Blur of the second set of templates, in cells of the grid: decoders round the corners of small shapes."""

MIN_OVERLAP = 0.78
"""Least intersection over union with a template for a segment to count as a shape."""


@dataclass(frozen=True)
class DetectedObject:
    """An object seen in an image.

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
    kernel = kernel / kernel.sum(1).max()  # one scale for all rows: near the border, part of the blur falls outside
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
    # grid_sample's coordinates: -1 and 1 are the borders of the image, pixel centres are at half a pixel.
    points = torch.stack([(centre_x + radius * x + 0.5) / width, (centre_y + radius * y + 0.5) / height], -1) * 2 - 1
    seen = F.grid_sample(mask[None, None], points[None], align_corners=False).flatten()
    union = torch.maximum(seen, _templates()).sum(-1)
    return tuple((torch.minimum(seen, _templates()).sum(-1) / union).amax(-1).tolist())


def detect(image: Tensor) -> tuple[DetectedObject, ...]:
    """The objects of an image, in reading order.

    Args:
        image: `(3, H, W)` in [0, 1], an image of the shapes world.

    Examples:
        >>> from fk_reward.shapes import Scene, SceneObject, render
        >>> image = render([Scene((SceneObject("cross", "blue", x=0.5, y=0.25, size=0.15),))])[0]
        >>> [(obj.color, obj.shape, round(obj.y, 2)) for obj in detect(image)]
        [('blue', 'cross', 0.25)]
    """
    return tuple(_described(image, segment) for segment in segments(image))


def _coverage(image: Tensor, segment: Segment) -> Tensor:
    """Share of each pixel that the segment covers, from its colour between the background and the palette."""
    background = torch.tensor(BACKGROUND) / 255
    paint = torch.tensor(COLORS[segment.color]) / 255 - background
    pixels = image.detach().float().cpu().permute(1, 2, 0)
    share = ((pixels - background) @ paint / paint.square().sum()).clamp(0.0, 1.0)
    # Widened by a pixel: the mask leaves out edges that are mostly background.
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
