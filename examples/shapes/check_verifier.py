"""Prints how often the verifier is right on pictures that show exactly what their prompt says."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from fk_reward.models import resolve_model
from fk_reward.shapes import TASKS, ShapesPrompt, all_prompts, benchmark_prompts, render, sample_scene, verify


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encodes and decodes pictures in [0, 1]."""
    return (vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)


def right(images: Tensor, prompts: tuple[ShapesPrompt, ...]) -> list[bool]:
    """Verdict on each picture."""
    return [verify(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)]


def random_prompts(prompts: tuple[ShapesPrompt, ...], rng: np.random.Generator) -> tuple[ShapesPrompt, ...]:
    """For each prompt another one of its task."""
    others = ([other for other in all_prompts(prompt.task) if other != prompt] for prompt in prompts)
    return tuple(pool[rng.integers(len(pool))] for pool in others)


def main(num_scenes: int = 2000, seed: int = 2, chunk: int = 50) -> None:
    """Draws scenes of both splits; judges them as rendered, after the VAE, and against another prompt of the task."""
    rng, start = np.random.default_rng(seed), time.perf_counter()
    vae = AutoencoderKL.from_pretrained(resolve_model("shapes-sd"), subfolder="vae").eval()
    both = zip(benchmark_prompts(num_scenes, "heldout"), benchmark_prompts(num_scenes, "validation"), strict=True)
    prompts = tuple(islice((prompt for pair in both for prompt in pair), num_scenes))
    rows: dict[str, list[bool]] = {"rendered": [], "after the VAE": [], "rendered, another prompt of the task": []}
    for i in range(0, num_scenes, chunk):
        part = prompts[i : i + chunk]
        images = render([sample_scene(prompt, rng) for prompt in part])
        rows["rendered"] += right(images, part)
        rows["after the VAE"] += right(round_trip(vae, images), part)
        rows["rendered, another prompt of the task"] += right(images, random_prompts(part, rng))
    for name, verdicts in rows.items():
        by_task = {t: np.mean([v for v, p in zip(verdicts, prompts, strict=True) if p.task == t]) for t in TASKS}
        print(
            f"{name}: {np.mean(verdicts):.4f} of {num_scenes}; " + ", ".join(f"{t} {m:.3f}" for t, m in by_task.items())
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
