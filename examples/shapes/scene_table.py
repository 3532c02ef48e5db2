"""Scenes as tensors, and scenes of one to four objects of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fk_reward.shapes import COLORS, SHAPES, ObjectSpec, Scene, SceneObject, ShapesPrompt, sample_scene

MAX_OBJECTS = 4


def mixed_scene(rng: np.random.Generator) -> Scene:
    """One to four objects, each of any shape and colour; mostly such as no sentence of the grammar describes."""
    number = rng.choice(MAX_OBJECTS, p=[0.1, 0.3, 0.35, 0.25]) + 1
    shapes, colors = rng.choice(SHAPES, number), rng.choice(list(COLORS), number)
    if number > 1 and rng.random() < 0.5:  # likeness makes questions hard
        shapes[1], colors[-1] = shapes[0], colors[0]
    specs = tuple(ObjectSpec(str(shape), str(color)) for shape, color in zip(shapes, colors, strict=True))
    return sample_scene(ShapesPrompt("mixed", specs), rng)


def to_table(scenes: Sequence[Scene]) -> Tensor:
    """Objects as `(N, 4, 6)` float32: shape, colour (-1: no object), x, y, size, rotation."""
    table = torch.full((len(scenes), MAX_OBJECTS, 6), -1.0)
    for row, scene in zip(table, scenes, strict=True):
        for cell, obj in zip(row, scene.objects, strict=False):
            names = (SHAPES.index(obj.shape), tuple(COLORS).index(obj.color))
            cell[:] = torch.tensor([*names, obj.x, obj.y, obj.size, obj.rotation])
    return table


def from_table(row: Tensor) -> Scene:
    """A scene of one row `(4, 6)` of the table."""
    cells = [cell for cell in row.tolist() if cell[0] >= 0]
    return Scene(
        tuple(
            SceneObject(SHAPES[int(s)], tuple(COLORS)[int(c)], x=x, y=y, size=size, rotation=rotation)
            for s, c, x, y, size, rotation in cells
        )
    )
