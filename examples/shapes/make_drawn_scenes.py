"""Reads off what pictures that `shapes-sd` drew show, so that the multimodal LLM can be asked about them as well."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from drawn_pictures import STEPS, Draw, load_draws, on_side
from safetensors.torch import save_file
from scene_table import MAX_OBJECTS, to_table
from torch import Tensor

from fk_reward.shapes import DetectedObject, Scene, SceneObject, all_prompts, verify

FIRST_STAGE = STEPS.index(25)
"""Pictures predicted at earlier steps are too blurred to be read."""


def as_scene(found: Sequence[DetectedObject]) -> Scene:
    """The objects seen in a picture; none where one of them has no shape."""
    if len(found) > MAX_OBJECTS:
        return Scene(())
    objects = [_as_drawn(obj, obj.shape) for obj in found if obj.shape is not None]
    return Scene(tuple(objects) if len(objects) == len(found) else ())


def _as_drawn(obj: DetectedObject, shape: str) -> SceneObject:
    return SceneObject(shape, obj.color, x=obj.x, y=obj.y, size=(obj.area / torch.pi) ** 0.5)


def rows_of(draw: Draw) -> dict[str, Tensor]:
    """Pictures of a draw with their objects, the number of their prompt and whether they show it."""
    images = draw.images[:, FIRST_STAGE:].flatten(0, 1)
    verdicts = [verify(image / 255, draw.prompt) for image in images]
    return {
        "images": images,
        "objects": to_table([as_scene(verdict.objects) for verdict in verdicts]),
        "prompts": torch.full((len(images),), all_prompts().index(draw.prompt)),
        "correct": torch.tensor([verdict.correct for verdict in verdicts]),
    }


def main(
    samples: Annotated[list[Path], typer.Option(help="Files of sample_pictures.py, of training prompts.")],
    output: Path = Path("runs/drawn_scenes.safetensors"),
) -> None:
    """Writes `images` `(N, 3, 64, 64)` uint8, `objects` (the table of `scene_table.py`), `prompts` and `correct`.

    Only pictures of prompts on which adapters are trained, neither validated nor tested.
    """
    start = time.perf_counter()
    rows = [rows_of(draw) for draw in on_side(load_draws(samples), "train")]
    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output)
    read, correct = (tensors["objects"][:, 0, 0] >= 0).float().mean(), tensors["correct"].float().mean()
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(tensors['images'])} pictures, {read:.2f} of them read, {correct:.2f} right; {minutes:.1f} minutes")


if __name__ == "__main__":
    typer.run(main)
