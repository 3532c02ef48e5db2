"""Training data: captioned scenes and their pictures, held in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fk_reward.shapes import Scene, ShapesPrompt, render, sample_scene, train_prompts

TASK_SHARES = {"single_object": 1, "two_object": 2, "counting": 3, "colors": 1, "position": 5, "color_attr": 4}
"""How often each task is drawn: the harder, the oftener."""


def captioned_scenes(num_scenes: int, rng: np.random.Generator) -> list[tuple[ShapesPrompt, Scene]]:
    """Random training prompts, each with a scene of its own."""
    prompts = {task: train_prompts(task) for task in TASK_SHARES}
    shares = np.array(list(TASK_SHARES.values())) / sum(TASK_SHARES.values())
    tasks = rng.choice(list(TASK_SHARES), size=num_scenes, p=shares)
    chosen = [prompts[task][rng.integers(len(prompts[task]))] for task in tasks]
    return [(prompt, sample_scene(prompt, rng)) for prompt in chosen]


def pictures(scenes: list[Scene], chunk: int = 64) -> Tensor:
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
