"""Renders the scenes that the multimodal LLM is trained on: of training prompts, and of any objects at all."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import typer
from safetensors.torch import save_file
from scene_data import captioned_scenes, pictures
from scene_table import mixed_scene, to_table


def main(output: Path = Path("runs/mixed_scenes.safetensors"), num_scenes: int = 60_000, seed: int = 11) -> None:
    """Writes `images` `(N, 3, 64, 64)` uint8 and `objects`, the table of `scene_table.py`."""
    start, rng = time.perf_counter(), np.random.default_rng(seed)
    scenes = [scene for _, scene in captioned_scenes(num_scenes // 2, rng)]
    scenes += [mixed_scene(rng) for _ in range(num_scenes - len(scenes))]
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": pictures(scenes), "objects": to_table(scenes)}, output)
    print(f"{num_scenes} scenes in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
