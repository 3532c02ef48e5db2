"""Pairs of images and captions of which one is true, rendered or drawn: what a reward of alignment must tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TypeVar

import numpy as np
import torch
from artefacts import BACKGROUND_PAINT, bitten, centre, pixel_grid, random_mask
from preference_files import Pair
from prompt_sides import neighbours, prompts_of
from sample_images import STEPS, Draw, balanced
from scene_data import scene_images
from torch import Tensor
from train_clip import degraded

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    TASKS,
    Scene,
    SceneObject,
    ShapesPrompt,
    render,
    sample_scene,
    true_prompts,
    verify,
)

GAP = 0.04
"""Least distance of two objects, in sides of the canvas."""


def with_one_missing(scene: Scene, rng: np.random.Generator) -> Scene:
    """Without one of its objects; an empty canvas where there was one only."""
    left_out = rng.integers(len(scene.objects))
    return Scene(tuple(obj for i, obj in enumerate(scene.objects) if i != left_out))


def with_one_more(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """With another object, half of the time one that is there already; None where there is no room for it."""
    twin = scene.objects[rng.integers(len(scene.objects))]
    if rng.random() < 0.5:
        twin = replace(twin, shape=str(rng.choice(SHAPES)), color=str(rng.choice(list(COLORS))))
    for _ in range(40):
        smaller = replace(twin, size=max(0.09, twin.size * rng.uniform(0.6, 1.0)))
        x, y = rng.uniform(smaller.extent + GAP / 2, 1 - smaller.extent - GAP / 2, 2)
        extra = replace(smaller, x=float(x), y=float(y))
        if all(math.hypot(x - o.x, y - o.y) > extra.extent + o.extent + GAP for o in scene.objects):
            return Scene((*scene.objects, extra))
    return None


def _color_of(image: Tensor, mask: Tensor) -> str:
    paint = image[:, mask].median(dim=1).values
    return min(COLORS, key=lambda name: (torch.tensor(COLORS[name]) / 255 - paint).norm().item())


def _doubled(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An object with another shape of its colour across it."""
    mask = random_mask(image, rng)
    x, y, radius = centre(mask)
    side, angle, away = image.shape[-1], rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0) * radius
    place = ((x + away * math.cos(angle) + 0.5) / side, (y + away * math.sin(angle) + 0.5) / side)
    color = _color_of(image, mask)
    other = SceneObject(
        str(rng.choice(SHAPES)), color, x=place[0], y=place[1], size=rng.uniform(0.7, 1) * radius / side
    )
    paint = torch.tensor(COLORS[color])[:, None, None] / 255
    drawn = render([Scene((other,))])[0]
    cover = (drawn - BACKGROUND_PAINT).norm(dim=0) / (paint - BACKGROUND_PAINT).norm()
    return torch.lerp(image, paint, cover.clamp(0, 1))


def _blob(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An irregular blob in place of an object."""
    mask = random_mask(image, rng)
    x, y, radius = centre(mask)
    columns, rows = pixel_grid(image)
    angle = torch.atan2(rows - y, columns - x)
    waves = sum(rng.uniform(0.1, 0.3) * torch.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    cover = (radius * (0.9 + waves) - torch.hypot(columns - x, rows - y) + 0.5).clamp(0, 1)
    paint = torch.tensor(COLORS[_color_of(image, mask)])[:, None, None] / 255
    return torch.lerp(torch.where(mask, BACKGROUND_PAINT, image), paint, cover)


def _bitten_deeply(image: Tensor, rng: np.random.Generator) -> Tensor:
    return bitten(image, rng, depth=(0.7, 1.1))


MALFORMATIONS = (_doubled, _blob, _bitten_deeply)


def malformed(image: Tensor, prompt: ShapesPrompt, rng: np.random.Generator) -> Tensor:
    """An image `(3, H, W)` with an object that has none of the shapes, so that it no longer shows its prompt."""
    for choice in np.repeat(rng.permutation(len(MALFORMATIONS)), 20):
        changed = MALFORMATIONS[choice](image, rng)
        if not verify(changed, prompt).correct:
            return changed
    raise ValueError(f"Could not deform any object of an image of {prompt.text!r}.")


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
    """A pair whose images are still to be drawn."""

    prompt: ShapesPrompt
    rejected_prompt: ShapesPrompt
    chosen: Scene
    rejected: Scene
    kind: str


def pick(items: Sequence[T], rng: np.random.Generator) -> T:
    """One of them."""
    return items[int(rng.integers(len(items)))]


def half_degraded(images: Sequence[Tensor], rng: np.random.Generator, chunk: int = 64) -> list[Tensor]:
    """Degrades a random half of the rows, as images decoded before sampling has ended.

    Args:
        images: Tensors `(N, 3, H, W)` uint8, such as the chosen and the rejected images of N pairs; the same happens
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
    images = scene_images([draft.chosen for draft in drafts])
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
    chosen, rejected = (
        scene_images([draft.chosen for draft in drafts]),
        scene_images([draft.rejected for draft in drafts]),
    )
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


MIN_GAP = 0.15
"""Least difference of the verifier's scores of a pair."""

MAX_PAIRS = 6
"""Of one draw."""

MAX_CAPTION_PAIRS = 3
"""Of one draw, for pairs of captions."""

CAPTION_SHARE = 0.3
"""Of the pairs of finished images: one image with its prompt and with a false one."""

STEP_SHARES = (0.04, *[0.96 / (len(STEPS) - 1)] * (len(STEPS) - 1))
"""How often each step's predictions are chosen; those of the first show little yet."""


def ranked_pairs(draw: Draw, rng: np.random.Generator, *, at_most: int = MAX_PAIRS) -> list[tuple[int, int]]:
    """Better and worse images of a draw; first those of which one is right and one wrong, else in random order."""
    gaps = draw.scores[:, None] - draw.scores
    found = rng.permutation((gaps >= MIN_GAP).nonzero().numpy()).tolist()
    found.sort(key=lambda pair: not draw.correct[pair[0]])
    return [(better, worse) for better, worse in found[:at_most]]


def _pair(draw: Draw, pair: tuple[int, int], stage: int, kind: str) -> Pair:
    better, worse = (draw.images[row, stage] for row in pair)
    return Pair(prompt=draw.prompt, rejected_prompt=draw.prompt, chosen=better, rejected=worse, kind=kind)


def prediction_pairs(number: int, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Two images of a draw as they were predicted at one earlier step, ranked by what became of them."""
    found = [[(draw, pair) for pair in ranked_pairs(draw, rng)] for draw in draws]
    chosen = balanced(draws, found)[:number]
    stages = rng.choice(len(STEPS), len(chosen), p=STEP_SHARES).tolist()
    rows = zip(chosen, stages, strict=True)
    return [_pair(draw, pair, stage, f"predictions/{STEPS[stage]}") for (draw, pair), stage in rows]


def _false_caption(draw: Draw, row: int, side: str, rng: np.random.Generator) -> tuple[str, ShapesPrompt] | None:
    """Kind and prompt of a caption that the verifier finds false of a finished image."""
    kinds = neighbours(draw.prompt, side)
    for kind in rng.permutation(list(kinds)).tolist():
        prompt = pick(kinds[kind], rng)
        if not verify(draw.images[row, -1] / 255, prompt).correct:
            return kind, prompt
    return None


def _caption_pairs(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    right = [rng.permutation(draw.correct.nonzero()[:, 0].numpy())[:MAX_CAPTION_PAIRS].tolist() for draw in draws]
    found = [[(draw, row) for row in rows] for draw, rows in zip(draws, right, strict=True)]
    pairs = []
    for draw, row in balanced(draws, found)[:number]:
        false = _false_caption(draw, row, side, rng)
        if false is not None:
            kind, prompt, image = f"samples/caption {false[0]}", false[1], draw.images[row, -1]
            pairs.append(Pair(prompt=draw.prompt, rejected_prompt=prompt, chosen=image, rejected=image, kind=kind))
    return pairs


def sample_pairs(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Two finished images of a draw; and, for `CAPTION_SHARE` of the pairs, a right one with a false caption too."""
    found = [[(draw, pair) for pair in ranked_pairs(draw, rng)] for draw in draws]
    chosen = balanced(draws, found)[: number - round(CAPTION_SHARE * number)]
    pairs = [_pair(draw, pair, -1, "samples/drawn") for draw, pair in chosen]
    return pairs + _caption_pairs(number - len(pairs), side, draws, rng)
