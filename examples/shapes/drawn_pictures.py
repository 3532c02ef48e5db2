"""Pictures that a model drew, as `sample_pictures.py` writes them, by draw of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TypeVar

from prompt_sides import side_of
from safetensors.torch import load_file
from torch import Tensor

from fk_reward import FKSteeringConfig
from fk_reward.shapes import TASKS, ShapesPrompt, all_prompts

T = TypeVar("T")

NUM_STEPS = 50
PREDICTIONS = FKSteeringConfig(resample_start=0.2, resample_stop=0.9, num_resamples=8)
"""Scoring steps, at which nothing is resampled here: every tenth of the trajectory from a fifth on."""

STEPS = PREDICTIONS.scoring_steps(NUM_STEPS)
"""Those whose predictions `sample_pictures.py` keeps."""


@dataclass(frozen=True, eq=False)
class Draw:
    """K pictures of one prompt, drawn together.

    Attributes:
        prompt: What was asked for.
        images: `(K, 9, 3, 64, 64)` uint8: what was predicted at each of `STEPS`, and last the picture.
        correct: `(K,)` bool, the verifier's verdict on the last.
        scores: `(K,)`, its score.
    """

    prompt: ShapesPrompt
    images: Tensor
    correct: Tensor
    scores: Tensor


def load_draws(paths: Iterable[Path]) -> list[Draw]:
    """Draws of all files; pictures that stand together under one prompt are one draw.

    Raises:
        ValueError: A file does not have the predictions of `STEPS` and the finished pictures.
    """
    draws = []
    for path in paths:
        data = load_file(path)
        if data["images"].shape[1] != len(STEPS) + 1:
            raise ValueError(f"{path}: expected {len(STEPS) + 1} pictures a sample, got {data['images'].shape[1]}.")
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
