"""Scenes that no longer show what their prompt says: an object short, one too many, one out of shape."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from artefacts import BACKGROUND_PAINT, bitten, centre, pixel_grid, random_mask
from torch import Tensor

from fk_reward.shapes import COLORS, SHAPES, Scene, SceneObject, ShapesPrompt, render, verify

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
    """A picture `(3, H, W)` with an object that has none of the shapes, so that it no longer shows its prompt."""
    for choice in np.repeat(rng.permutation(len(MALFORMATIONS)), 20):
        changed = MALFORMATIONS[choice](image, rng)
        if not verify(changed, prompt).correct:
            return changed
    raise ValueError(f"Could not deform any object of a picture of {prompt.text!r}.")
