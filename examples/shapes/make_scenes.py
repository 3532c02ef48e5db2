"""Renders the captioned scenes that the UNet and the CLIP are trained on, into one safetensors file."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from scene_data import captioned_scenes, pictures

from fk_reward.shapes import Scene, all_prompts, true_prompts

MAX_TRUE_PROMPTS = 8


def true_prompt_indices(scene: Scene, index: dict) -> list[int]:
    """Indices of the prompts that a scene satisfies, padded with -1."""
    found = sorted(index[prompt] for prompt in true_prompts(scene))
    return found + [-1] * (MAX_TRUE_PROMPTS - len(found))


def main(output: Path = Path("runs/scenes.safetensors"), num_scenes: int = 80_000, seed: int = 1) -> None:
    """Draws and renders scenes of training prompts."""
    start = time.perf_counter()
    index = {prompt: i for i, prompt in enumerate(all_prompts())}
    prompts, scenes = zip(*captioned_scenes(num_scenes, np.random.default_rng(seed)), strict=True)
    tensors = {
        "images": pictures(list(scenes)),
        "prompts": torch.tensor([index[prompt] for prompt in prompts], dtype=torch.int16),
        "true_prompts": torch.tensor([true_prompt_indices(scene, index) for scene in scenes], dtype=torch.int16),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output)
    print(f"{num_scenes} scenes in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
