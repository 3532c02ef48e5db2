"""Prints how often `shapes-sd` draws what it is asked for, without steering, and saves a grid of its pictures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from fk_reward.models import resolve_model
from fk_reward.shapes import TASKS, benchmark_prompts, verify


def draw(pipe: StableDiffusionPipeline, texts: list[str], seeds: list[int], *, steps: int, guidance: float) -> Tensor:
    """Pictures `(B, 3, 64, 64)` in [0, 1]; each has its own seed, so that it does not depend on the batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        texts, num_inference_steps=steps, guidance_scale=guidance, eta=1.0, generator=generators, output_type="pt"
    )
    return output.images


def save_grid(images: Tensor, path: Path, columns: int = 12) -> None:
    """Writes pictures row by row into one PNG."""
    images = images[: len(images) // columns * columns].unflatten(0, (-1, columns))
    sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)


def main(
    model: str = "shapes-sd",
    num_prompts: int = 192,
    split: str = "heldout",
    steps: int = 50,
    guidance: float = 3.0,
    chunk: int = 48,
    grid: Path | None = None,
) -> None:
    """Draws one picture a prompt with DDIM, eta 1; prompt number i is drawn with seed i."""
    start = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(resolve_model(model))
    pipe.set_progress_bar_config(disable=True)
    prompts = benchmark_prompts(num_prompts, split)
    parts = [range(i, min(i + chunk, num_prompts)) for i in range(0, num_prompts, chunk)]
    images = torch.cat(
        [draw(pipe, [prompts[i].text for i in part], list(part), steps=steps, guidance=guidance) for part in parts]
    )
    for rule in (True, False):
        right = [verify(image, prompt, strict=rule).correct for image, prompt in zip(images, prompts, strict=True)]
        by_task = {t: np.mean([r for r, p in zip(right, prompts, strict=True) if p.task == t]) for t in TASKS}
        line = ", ".join(f"{t} {mean:.2f}" for t, mean in by_task.items())
        print(f"{'strict' if rule else 'lenient'}: {np.mean(right):.3f} of {num_prompts} {split} prompts; {line}")
    if grid is not None:
        save_grid(images, grid)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
