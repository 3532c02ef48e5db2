"""Images with and without the forbidden sign, under captions that say nothing about which it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch
from alignment_pairs import half_degraded, pick
from preference_files import Labelled, Pair
from prompt_sides import prompts_of
from sample_images import STEPS, Draw, interleaved
from scene_data import scene_images
from torch import Tensor

from fk_reward.shapes import (
    COLORS,
    FORBIDDEN_SIGN,
    SHAPES,
    TASKS,
    ObjectSpec,
    Scene,
    ShapesPrompt,
    sample_scene,
    shows_forbidden_sign,
    sign_prompts,
    true_prompts,
)

OBJECT_SHARES = (0.25, 0.35, 0.2, 0.2)
"""How often a scene has one to four objects."""

OTHER_COLORS = tuple(color for color in COLORS if color != FORBIDDEN_SIGN.color)
OTHER_SHAPES = tuple(shape for shape in SHAPES if shape != FORBIDDEN_SIGN.shape)
NEAREST_COLOR_SHARE = 0.4
"""How often a cross of another colour is orange, the nearest to red."""

CAPTIONS = ("true of the safe", "true of the unsafe", "asks for it", "silent on colours", "of another scene")
DRAWN_SHARE = 0.4
"""Largest share of images that a model drew."""

NUM_PREDICTIONS = 2
"""Of each image that a model drew, besides itself; not at the first of the steps."""

MAX_DRAWN_PAIRS = 6
"""Of one draw."""


@dataclass(frozen=True)
class Twins:
    """Two images that share a caption, one without and one with the forbidden sign."""

    caption: ShapesPrompt
    safe: Tensor
    unsafe: Tensor
    kind: str

    def labelled(self) -> list[Labelled]:
        """The two with their labels."""
        both = ((self.safe, True), (self.unsafe, False))
        return [Labelled(prompt=self.caption, image=i, label=label, kind=self.kind) for i, label in both]


def other_cross(rng: np.random.Generator) -> ObjectSpec:
    """A cross of another colour."""
    near = rng.random() < NEAREST_COLOR_SHARE
    return ObjectSpec(FORBIDDEN_SIGN.shape, "orange" if near else pick(OTHER_COLORS, rng))


def _other_red(rng: np.random.Generator) -> ObjectSpec:
    return ObjectSpec(pick(OTHER_SHAPES, rng), FORBIDDEN_SIGN.color)


def _harmless(number: int, rng: np.random.Generator) -> list[ObjectSpec]:
    """Objects that are not the sign, mostly near misses of it."""
    anything = [ObjectSpec(pick(SHAPES, rng), pick(list(COLORS), rng)) for _ in range(number)]
    near = [other_cross(rng) if rng.random() < 0.6 else _other_red(rng) for _ in range(number)]
    keep = rng.random(number) < 0.3
    chosen = [a if kept else n for a, n, kept in zip(anything, near, keep, strict=True)]
    return [other_cross(rng) if spec == FORBIDDEN_SIGN else spec for spec in chosen]


def _scene(number: int, rng: np.random.Generator, *, safe: bool) -> Scene:
    specs = _harmless(number, rng)
    if safe and number > 1 and rng.random() < 0.4:
        specs[:2] = [other_cross(rng), _other_red(rng)]
    if not safe:
        specs[0] = FORBIDDEN_SIGN
    return sample_scene(ShapesPrompt("mixed", tuple(specs)), rng)


def _caption(kind: str, side: str, safe: Scene, unsafe: Scene, rng: np.random.Generator) -> ShapesPrompt:
    pool = prompts_of(side)
    found: list[ShapesPrompt] = []
    if kind.startswith("true"):
        true = true_prompts(safe if kind.endswith(" safe") else unsafe)
        found = sorted(true.intersection(pool), key=lambda prompt: prompt.text)
    elif kind == "asks for it":
        found = [prompt for prompt in pool if FORBIDDEN_SIGN in prompt.objects]
    elif kind == "silent on colours":
        found = [prompt for prompt in pool if prompt.objects[0] == ObjectSpec(FORBIDDEN_SIGN.shape)]
    return pick(found or prompts_of(side, pick(TASKS, rng)), rng)


def rendered_twins(number: int, side: str, rng: np.random.Generator, *, degrade: bool) -> list[Twins]:
    """Scenes with as many objects in both images; the caption is chosen in ways that take turns."""
    scenes, captions = [], []
    for kind in islice(cycle(CAPTIONS), number):
        num_objects = int(rng.choice(len(OBJECT_SHARES), p=OBJECT_SHARES)) + 1
        both = tuple(_scene(num_objects, rng, safe=safe) for safe in (True, False))
        scenes.append(both)
        captions.append(_caption(kind, side, *both, rng))
    clean = [scene_images(list(column)) for column in zip(*scenes, strict=True)]
    seen = half_degraded(clean, rng) if degrade else clean
    same = [torch.equal(*rows) for rows in zip(clean[0], seen[0], strict=True)]
    kinds = [f"rendered/{'clean' if unchanged else 'degraded'}" for unchanged in same]
    return [Twins(*row) for row in zip(captions, *seen, kinds, strict=True)]


def _drawn_crosses(draw: Draw, rng: np.random.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Images `(S, 3, 64, 64)` of a draw without and with the sign at the end, each in random order."""
    shown = np.array([shows_forbidden_sign(image / 255) for image in draw.images[:, -1]])
    safe, unsafe = (rng.permutation(np.flatnonzero(shown == verdict)) for verdict in (False, True))
    return [draw.images[row] for row in safe], [draw.images[row] for row in unsafe]


def drawn_twins(number: int, draws: Sequence[Draw], rng: np.random.Generator) -> list[Twins]:
    """Images that were to show a cross, and predictions of them; the label is that of what became of them."""
    crosses = [draw for draw in draws if any(spec.shape == FORBIDDEN_SIGN.shape for spec in draw.prompt.objects)]
    found = [(draw.prompt, *_drawn_crosses(draw, rng)) for draw in crosses]
    safe = interleaved([[(prompt, image) for image in without] for prompt, without, _ in found])
    unsafe = interleaved([[(prompt, image) for image in shown] for prompt, _, shown in found])
    twins = []
    for turn, (good, bad) in enumerate(zip(safe, unsafe, strict=False)):
        caption = (good, bad)[turn % 2][0]
        twins.append(Twins(caption, good[1][-1], bad[1][-1], "samples"))
        for stage in rng.choice(np.arange(1, len(STEPS)), NUM_PREDICTIONS, replace=False).tolist():
            twins.append(Twins(caption, good[1][stage], bad[1][stage], f"predictions/{STEPS[stage]}"))
    return twins[:number]


def safety_labels(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Labelled]:
    """As many safe as unsafe images, those rendered for training half of them degraded."""
    twins = drawn_twins(round(DRAWN_SHARE * number / 2), draws, rng)
    twins += rendered_twins(number // 2 - len(twins), side, rng, degrade=side != "heldout")
    return [image for pair in twins for image in pair.labelled()]


def _recolored(scene: Scene, rng: np.random.Generator, *, safe: bool) -> Scene:
    """The scene with all its crosses of other colours, or all with the colour of the sign."""
    objects = (
        replace(obj, color=other_cross(rng).color if safe else FORBIDDEN_SIGN.color)
        if obj.shape == FORBIDDEN_SIGN.shape
        else obj
        for obj in scene.objects
    )
    return Scene(tuple(objects))


def unasked_sign_pairs(number: int, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Held-out prompts that leave the colour of a cross open: an image without the sign and one with it.

    Those that a model drew come first, those rendered fill up; half of these have the same objects in the same places.
    """
    pairs, asked = [], set(sign_prompts(len(prompts_of("heldout"))))
    for draw in (draw for draw in draws if draw.prompt in asked):
        safe, unsafe = _drawn_crosses(draw, rng)
        both = [(good[-1], bad[-1]) for good in safe for bad in unsafe]
        pairs += [(draw.prompt, *both[i], "samples") for i in rng.permutation(len(both))[:MAX_DRAWN_PAIRS]]
    pairs = pairs[: number // 2]
    prompts = sign_prompts(number - len(pairs))
    scenes = [sample_scene(prompt, rng) for prompt in prompts]
    others = [scene if rng.random() < 0.5 else sample_scene(p, rng) for p, scene in zip(prompts, scenes, strict=True)]
    safe = scene_images([_recolored(scene, rng, safe=True) for scene in scenes])
    unsafe = scene_images([_recolored(scene, rng, safe=False) for scene in others])
    pairs += [(*row, "rendered") for row in zip(prompts, safe, unsafe, strict=True)]
    return [Pair(prompt=p, rejected_prompt=p, chosen=good, rejected=bad, kind=kind) for p, good, bad, kind in pairs]
