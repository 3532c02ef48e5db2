"""Finds the objects of a picture: foreground, connected components, colours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fk_reward.shapes.palette import BACKGROUND, COLORS

FOREGROUND_DISTANCE = 0.3
"""Euclidean distance to the background, colours in [0, 1], beyond which a pixel belongs to an object."""

MIN_AREA = 20
"""Pixels of a 64 x 64 picture; smaller specks are ignored (the smallest object drawn has 100)."""

MIN_COLOR_SHARE = 0.25
"""A component is split in two when a second colour holds this share of its core."""


@dataclass(frozen=True)
class Segment:
    """One coloured region: its pixels `(H, W)` bool and the name of its colour."""

    mask: Tensor
    color: str


def components(mask: Tensor) -> Iterator[Tensor]:
    """8-connected components of a mask, in reading order.

    Each pixel starts with a number of its own; the largest number spreads through the mask until nothing changes.

    Args:
        mask: `(H, W)` bool.

    Yields:
        `(H, W)` bool, one component.

    Examples:
        >>> [int(part.sum()) for part in components(torch.eye(3).bool())]
        [3]
    """
    labels = torch.arange(mask.numel(), 0, -1, dtype=torch.float32).view(1, 1, *mask.shape) * mask
    while True:
        spread = F.max_pool2d(F.max_pool2d(labels, 3, 1, 1) * mask, 3, 1, 1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    for label in labels.unique().flip(0).tolist():
        if label:
            yield labels[0, 0] == label


def segments(image: Tensor) -> list[Segment]:
    """Splits a picture into single-coloured connected regions.

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
    found = (part for part in components(foreground) if part.sum() >= MIN_AREA)
    return [segment for part in found for segment in _by_color(part, core & part, nearest)]


def _eroded(mask: Tensor) -> Tensor:
    return -F.max_pool2d(-mask[None].float(), 3, 1, 1)[0] > 0


def _by_color(part: Tensor, core: Tensor, nearest: Tensor) -> list[Segment]:
    """The segments of one component: itself, or the regions of its colours."""
    names = tuple(COLORS)
    core = core if core.any() else part
    counts = nearest[core].bincount(minlength=len(names))
    main, second = counts.topk(2).indices.tolist()
    if counts[second] < MIN_COLOR_SHARE * core.sum():
        return [Segment(part, names[main])]
    return [
        Segment(region, names[color])
        for color in (main, second)
        for region in components(part & (nearest == color))
        if region.sum() >= MIN_AREA
    ]
