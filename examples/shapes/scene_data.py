"""Captioned scenes of training prompts, scenes of any objects, their images, and their objects as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    Scene,
    SceneObject,
    ShapesPrompt,
    render,
    sample_scene,
    train_prompts,
)

TASK_SHARES = {"single_object": 1, "two_object": 2, "counting": 3, "colors": 1, "position": 5, "color_attr": 4}
"""How often each task is drawn: the harder, the oftener."""


def captioned_scenes(num_scenes: int, rng: np.random.Generator) -> list[tuple[ShapesPrompt, Scene]]:
    """Random training prompts, each with a scene of its own."""
    prompts = {task: train_prompts(task) for task in TASK_SHARES}
    shares = np.array(list(TASK_SHARES.values())) / sum(TASK_SHARES.values())
    tasks = rng.choice(list(TASK_SHARES), size=num_scenes, p=shares)
    chosen = [prompts[task][rng.integers(len(prompts[task]))] for task in tasks]
    return [(prompt, sample_scene(prompt, rng)) for prompt in chosen]


def scene_images(scenes: list[Scene], chunk: int = 64) -> Tensor:
    """Renders scenes as `(N, 3, 64, 64)` uint8."""
    chunks = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
    return torch.cat([render(part).mul(255).round().byte() for part in chunks])


class TensorsDataset(Dataset):
    """Named tensors with one row a sample, handed out a batch at a time."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {name: tensor[indices] for name, tensor in self.tensors.items()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])


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
