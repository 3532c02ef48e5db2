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
from fk_reward.value_checks import parse_shard

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
    pipe: FKSteeringPipeline,
    recorder: Recorder,
    prompts: dict[int, ShapesPrompt],
    *,
    per_prompt: int,
    seed: int,
    num_steps: int = NUM_STEPS,
) -> Tensor:
    """Draws `per_prompt` images of each prompt: `(P, K, S, 3, 64, 64)`, the predictions and then the image."""
    recorder.images.clear()
    pipe(
        [prompt.text for prompt in prompts.values()],
        num_particles=per_prompt,
        generator=particle_generators(seed, list(prompts), per_prompt),
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        output_type="pt",
    )
    return torch.stack(recorder.images, dim=1).unflatten(0, (len(prompts), per_prompt))


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str | Path = "shapes-sd",
    output_dir: Path = Path("runs/samples/train"),
    split: str = "validation",
    num_prompts: int = 600,
    first_prompt: int = 0,
    per_prompt: int = 8,
    prompts_per_call: int = 8,
    prompts_per_file: int = 48,
    seed: int = 1000,
    num_steps: int = NUM_STEPS,
    shard: str = "0/1",
) -> None:
    """Writes images `(N, S, 3, 64, 64)`, the number of their prompt among all and the verifier's verdict on the last.

    Files that are there already are left as they are, so that a run that was stopped goes on.

    Args:
        model: Name or folder of the pipeline.
        output_dir: Where the files are written, each named by its first prompt.
        split: `validation` for training prompts, `heldout` for the others; the tasks take turns.
        num_prompts: Of the split, from the first one on.
        first_prompt: Those before it are left out.
        per_prompt: Images of each prompt.
        prompts_per_call: Prompts that are drawn together.
        prompts_per_file: Prompts whose images are in one file.
        seed: Of all images; an image depends on it and on the numbers of its prompt and of the image.
        num_steps: Of the solver. With fewer, down to 20, predictions are of steps at the same fractions.
        shard: `i/n` leaves to this process every n-th file from the i-th on.
    """
    recorder, start = Recorder(), time.perf_counter()
    pipe = FKSteeringPipeline.from_pretrained(str(model), reward=recorder, steering=PREDICTIONS)
    pipe.set_progress_bar_config(disable=True)
    chosen, (index, count) = benchmark_prompts(num_prompts, split), parse_shard(shard)
    output_dir.mkdir(parents=True, exist_ok=True)
    parts = range(first_prompt, num_prompts, prompts_per_file)
    for first in parts[index::count]:
        path = output_dir / f"{first:05d}.safetensors"
        if path.exists():
            print(f"{path}: drawn already")
            continue
        rows = range(first, min(first + prompts_per_file, num_prompts))
        calls = (rows[i : i + prompts_per_call] for i in range(0, len(rows), prompts_per_call))
        options = {"per_prompt": per_prompt, "seed": seed, "num_steps": num_steps}
        drawn = [draw(pipe, recorder, {k: chosen[k] for k in call}, **options) for call in calls]
        tensors = judged(torch.cat(drawn).flatten(0, 1), [chosen[k] for k in rows for _ in range(per_prompt)])
        save_file(tensors, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        share, minutes = tensors["correct"].float().mean(), (time.perf_counter() - start) / 60
        print(f"{path}: {share:.3f} of {len(tensors['correct'])} images right; {minutes:.1f} minutes", flush=True)


def judged(images: Tensor, prompts: Sequence[ShapesPrompt]) -> dict[str, Tensor]:
    """What a file holds: images `(N, S, 3, 64, 64)`, numbers of their prompts, verdicts and scores of the last ones."""
    verdicts = [verify(image / 255, prompt) for image, prompt in zip(images[:, -1], prompts, strict=True)]
    index = {prompt: i for i, prompt in enumerate(all_prompts())}
    return {
        "images": images,
        "prompts": torch.tensor([index[prompt] for prompt in prompts]),
        "correct": torch.tensor([verdict.correct for verdict in verdicts]),
        "scores": torch.tensor([verdict.score for verdict in verdicts]),
    }


if __name__ == "__main__":
    cyclopts.run(main)
