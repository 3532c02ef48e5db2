"""Labels for the patches of a picture, read off its pixels and the captions that are true of it.

A pixel shows the nearest colour of the palette; a caption such as "a red circle and a blue square" says which shape has
that colour. So the vision tower of the CLIP can be told, patch by patch, what it sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fk_reward.shapes import BACKGROUND, COLORS, SHAPES, all_prompts

NUM_CLASSES = len(SHAPES) * len(COLORS) + 1
EMPTY = NUM_CLASSES - 1
UNKNOWN = -100
"""Class of the background, and of patches that the loss ignores."""


def shape_by_color() -> Tensor:
    """Which shape a prompt says a colour has: `(prompts + 1, colours)`, -1 where it does not say; last row -1."""
    names = tuple(COLORS)
    table = torch.full((len(all_prompts()) + 1, len(names)), -1)
    for row, prompt in enumerate(all_prompts()):
        for spec in prompt.objects:
            if spec.color:
                table[row, names.index(spec.color)] = SHAPES.index(spec.shape)
            elif len({other.shape for other in prompt.objects}) == 1:
                table[row] = SHAPES.index(spec.shape)
    return table


def patch_classes(images: Tensor, true_prompts: Tensor, table: Tensor, *, patch_size: int = 8) -> Tensor:
    """Class of each patch: `shape * colours + colour`, `EMPTY`, or `UNKNOWN` at edges and where no caption tells.

    Args:
        images: `(B, 3, H, W)` uint8, as rendered.
        true_prompts: `(B, N)` indices of the captions that are true of a picture, padded with -1.
        table: What `shape_by_color` returns.
        patch_size: Side of a patch in pixels.

    Returns:
        `(B, patches)`, in reading order.
    """
    palette = torch.tensor([*COLORS.values(), BACKGROUND], dtype=torch.float32, device=images.device)
    nearest = torch.cdist(images.float().flatten(2).mT, palette).argmin(-1).view(len(images), *images.shape[2:])
    shares = F.avg_pool2d(F.one_hot(nearest, len(palette)).permute(0, 3, 1, 2).float(), patch_size).flatten(2)
    empty, color = shares[:, -1], shares[:, :-1].argmax(1)
    shapes = table[true_prompts.int()].amax(1)
    shape = shapes.gather(1, color)
    known = (empty < 0.6) & (shape >= 0)
    classes = torch.where(known, shape * len(COLORS) + color, UNKNOWN)
    return classes.masked_fill(empty == 1, EMPTY)
