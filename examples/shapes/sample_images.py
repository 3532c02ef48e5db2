"""Draws prompts with `shapes-sd` and keeps, of each image, what it was predicted to become at earlier steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TypeVar

import cyclopts
import torch
from prompt_sides import side_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.shapes import TASKS, ShapesPrompt, all_prompts, benchmark_prompts, verify

T = TypeVar("T")

NUM_STEPS = 50
PREDICTIONS = FKSteeringConfig(resample_start=0.2, resample_stop=0.9, num_resamples=8)
"""Scoring steps, at which nothing is resampled here: every tenth of the trajectory from a fifth on."""

STEPS = PREDICTIONS.scoring_steps(NUM_STEPS)
"""Those whose predictions `sample_images.py` keeps."""


@dataclass(frozen=True, eq=False)
class Draw:
    """K images of one prompt, drawn together.

    Attributes:
        prompt: What was asked for.
        images: `(K, 9, 3, 64, 64)` uint8: what was predicted at each of `STEPS`, and last the image.
        correct: `(K,)` bool, the verifier's verdict on the last.
        scores: `(K,)`, its score.
    """

    prompt: ShapesPrompt
    images: Tensor
    correct: Tensor
    scores: Tensor


def load_draws(paths: Iterable[Path]) -> list[Draw]:
    """Draws of all files; images that stand together under one prompt are one draw.

    Raises:
        ValueError: A file does not have the predictions of `STEPS` and the finished images.
    """
    draws = []
    for path in paths:
        data = load_file(path)
        if data["images"].shape[1] != len(STEPS) + 1:
            raise ValueError(f"{path}: expected {len(STEPS) + 1} images a sample, got {data['images'].shape[1]}.")
        rows = range(len(data["prompts"]))
        for number, group in groupby(rows, key=data["prompts"].tolist().__getitem__):
            own = list(group)
            parts = (data[name][own[0] : own[-1] + 1] for name in ("images", "correct", "scores"))
            draws.append(Draw(all_prompts()[number], *parts))
    return draws


def on_side(draws: Iterable[Draw], side: str) -> list[Draw]:
    """The draws whose prompts are on a side."""
    return [draw for draw in draws if side_of(draw.prompt) == side]


def interleaved(groups: Iterable[Sequence[T]]) -> list[T]:
    """The groups take turns until all are used up."""
    return [item for turn in zip_longest(*groups) for item in turn if item is not None]


def balanced(draws: Sequence[Draw], found: Sequence[Sequence[T]]) -> list[T]:
    """What was found in each draw, in an order whose beginnings favour neither a task nor a draw."""
    by_task = {task: [f for draw, f in zip(draws, found, strict=True) if draw.prompt.task == task] for task in TASKS}
    return interleaved([interleaved(group) for group in by_task.values()])


class Recorder:
    """A reward that finds all images equal and keeps them."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Keeps `(B, 3, 64, 64)` images in [0, 1] as uint8; all score 0."""
        self.images.append(images.mul(255).round().byte().cpu())
        return torch.zeros(len(images), device=images.device)


def draw(
    pipe: FKSteeringPipeline, recorder: Recorder, prompts: dict[int, ShapesPrompt], *, per_prompt: int, seed: int
) -> Tensor:
    """Draws `per_prompt` images of each prompt: `(P, K, S, 3, 64, 64)`, the predictions and then the image."""
    recorder.images.clear()
    pipe(
        [prompt.text for prompt in prompts.values()],
        num_particles=per_prompt,
        generator=particle_generators(seed, list(prompts), per_prompt),
        num_inference_steps=NUM_STEPS,
        guidance_scale=3.0,
        output_type="pt",
    )
    return torch.stack(recorder.images, dim=1).unflatten(0, (len(prompts), per_prompt))


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str = "shapes-sd",
    output: Path = Path("runs/samples/train.safetensors"),
    split: str = "validation",
    num_prompts: int = 600,
    first_prompt: int = 0,
    per_prompt: int = 8,
    prompts_per_call: int = 8,
    seed: int = 1000,
) -> None:
    """Writes images `(N, S, 3, 64, 64)`, the number of their prompt among all and the verifier's verdict on the last.

    `split` is `validation` for training prompts and `heldout` for the others; the tasks take turns.
    """
    recorder, start = Recorder(), time.perf_counter()
    pipe = FKSteeringPipeline.from_pretrained(model, reward=recorder, steering=PREDICTIONS)
    pipe.set_progress_bar_config(disable=True)
    chosen = dict(enumerate(benchmark_prompts(num_prompts, split)[first_prompt:], first_prompt))
    parts = []
    for i in range(first_prompt, num_prompts, prompts_per_call):
        call = {k: chosen[k] for k in range(i, min(i + prompts_per_call, num_prompts))}
        parts.append(draw(pipe, recorder, call, per_prompt=per_prompt, seed=seed).flatten(0, 1))
    images = torch.cat(parts)
    prompts = [prompt for prompt in chosen.values() for _ in range(per_prompt)]
    verdicts = [verify(image / 255, prompt) for image, prompt in zip(images[:, -1], prompts, strict=True)]
    index = {prompt: i for i, prompt in enumerate(all_prompts())}
    output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "images": images,
        "prompts": torch.tensor([index[prompt] for prompt in prompts]),
        "correct": torch.tensor([verdict.correct for verdict in verdicts]),
        "scores": torch.tensor([verdict.score for verdict in verdicts]),
    }
    save_file(tensors, output)
    share, minutes = tensors["correct"].float().mean(), (time.perf_counter() - start) / 60
    print(f"{len(images)} images, {share:.3f} of them as their prompts say; {minutes:.1f} minutes")


if __name__ == "__main__":
    cyclopts.run(main)
