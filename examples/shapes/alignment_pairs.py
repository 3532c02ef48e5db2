"""Pairs of rendered scenes and captions of which one is true: what a reward of alignment must tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TypeVar

import numpy as np
import torch
from preference_files import Pair
from prompt_sides import neighbours, prompts_of
from scene_data import pictures
from torch import Tensor
from train_clip import degraded
from wrong_scenes import malformed, with_one_missing, with_one_more

from fk_reward.shapes import TASKS, Scene, ShapesPrompt, sample_scene, true_prompts

T = TypeVar("T")

CAPTION_TASKS: dict[str, tuple[str, ...]] = {
    "count": ("counting",),
    "shape": ("single_object", "two_object", *TASKS, "single_object", "two_object"),
    "color": ("colors", "color_attr", "colors"),
    "relation": ("position",),
    "swap": ("color_attr", "position", "color_attr"),
}
"""Kinds of false captions, which take turns, and for each the tasks, which take turns too."""

SCENE_KINDS = ("neighbour", "missing", "neighbour", "extra", "malformed")


@dataclass(frozen=True)
class Draft:
    """A pair whose pictures are still to be drawn."""

    prompt: ShapesPrompt
    rejected_prompt: ShapesPrompt
    chosen: Scene
    rejected: Scene
    kind: str


def pick(items: Sequence[T], rng: np.random.Generator) -> T:
    """One of them."""
    return items[int(rng.integers(len(items)))]


def half_degraded(images: Sequence[Tensor], rng: np.random.Generator, chunk: int = 64) -> list[Tensor]:
    """Degrades a random half of the rows, as pictures decoded before sampling has ended.

    Args:
        images: Tensors `(N, 3, H, W)` uint8, such as the chosen and the rejected pictures of N pairs; the same happens
            to a row in each of them.
        rng: Source of randomness.
        chunk: Rows at once.
    """
    results = [tensor.clone() for tensor in images]
    half = torch.from_numpy(rng.permutation(len(results[0]))[: len(results[0]) // 2])
    for start in range(0, len(half), chunk):
        rows, seed = half[start : start + chunk], int(rng.integers(2**31))
        for tensor in results:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tensor[rows] = degraded(tensor[rows] / 255).mul(255).round().byte()
    return results


def _caption_draft(kind: str, task: str, side: str, rng: np.random.Generator) -> Draft:
    while True:
        prompt = pick(prompts_of(side, task), rng)
        scene = sample_scene(prompt, rng)
        false = [p for p in neighbours(prompt, side).get(kind, ()) if p not in true_prompts(scene)]
        if false:
            return Draft(prompt, pick(false, rng), scene, scene, f"captions/{kind}")


def caption_pairs(number: int, side: str, rng: np.random.Generator, *, degrade: bool) -> list[Pair]:
    """A scene with a caption that is true of it, and with one that differs in one respect and is false."""
    tasks = {kind: cycle(names) for kind, names in CAPTION_TASKS.items()}
    drafts = [_caption_draft(kind, next(tasks[kind]), side, rng) for kind in islice(cycle(tasks), number)]
    images = pictures([draft.chosen for draft in drafts])
    if degrade:
        (images,) = half_degraded([images], rng)
    return _pairs(drafts, images, images)


def _wrong_scene(kind: str, prompt: ShapesPrompt, side: str, rng: np.random.Generator) -> Scene | None:
    scene = sample_scene(prompt, rng)
    if kind == "missing":
        return with_one_missing(scene, rng)
    if kind == "extra":
        return with_one_more(scene, rng)
    if kind == "malformed":
        return scene
    other = sample_scene(pick(pick(list(neighbours(prompt, side).values()), rng), rng), rng)
    return None if prompt in true_prompts(other) else other


def _scene_draft(kind: str, task: str, side: str, rng: np.random.Generator) -> Draft:
    while True:
        prompt = pick(prompts_of(side, task), rng)
        rejected = _wrong_scene(kind, prompt, side, rng)
        if rejected is not None:
            return Draft(prompt, prompt, sample_scene(prompt, rng), rejected, f"scenes/{kind}")


def scene_pairs(number: int, side: str, rng: np.random.Generator, *, degrade: bool) -> list[Pair]:
    """A caption with a scene that satisfies it, and with one that does not."""
    turns = islice(zip(cycle(SCENE_KINDS), cycle(TASKS), strict=False), number)
    drafts = [_scene_draft(kind, task, side, rng) for kind, task in turns]
    chosen, rejected = pictures([draft.chosen for draft in drafts]), pictures([draft.rejected for draft in drafts])
    for row, draft in enumerate(drafts):
        if draft.kind == "scenes/malformed":
            rejected[row] = malformed(rejected[row] / 255, draft.prompt, rng).mul(255).round().byte()
    if degrade:
        chosen, rejected = half_degraded([chosen, rejected], rng)
    return _pairs(drafts, chosen, rejected)


def _pairs(drafts: Sequence[Draft], chosen: Tensor, rejected: Tensor) -> list[Pair]:
    return [
        Pair(prompt=d.prompt, rejected_prompt=d.rejected_prompt, chosen=good, rejected=bad, kind=d.kind)
        for d, good, bad in zip(drafts, chosen, rejected, strict=True)
    ]
