"""Draws a random scene for a prompt, and finds the prompts that a scene satisfies."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from fk_reward.shapes.prompts import ObjectSpec, ShapesPrompt
from fk_reward.shapes.scene import COLORS, EXTENTS, MIN_ALIGNMENT, RELATIONS, Scene, SceneObject, alignment

SIZES: dict[int, tuple[float, float]] = {1: (0.14, 0.24), 2: (0.115, 0.18), 3: (0.095, 0.145), 4: (0.09, 0.13)}
"""Number of objects to the range of their sizes."""

MAX_ROTATION = 10.0
"""Degrees; the templates of `recognition` cover rotations up to this."""

GAP = 0.04
"""Least distance of two objects, in sides of the canvas: 2.5 pixels of 64, so that they are separate components."""

SAMPLED_ALIGNMENT = 0.8
"""Scenes keep clear of the border of a relation, which is at `MIN_ALIGNMENT`."""


def sample_scene(prompt: ShapesPrompt, rng: np.random.Generator) -> Scene:
    """Draws a scene that satisfies a prompt and shows nothing else.

    Sizes, places, rotations (at most 10 degrees) and the colours that the prompt leaves open are random.

    Args:
        prompt: What to show.
        rng: Source of randomness.

    Returns:
        A scene whose objects are in the order of the prompt.

    Examples:
        >>> from fk_reward.shapes import parse_prompt
        >>> scene = sample_scene(parse_prompt("a photo of two stars"), np.random.default_rng(0))
        >>> [obj.shape for obj in scene.objects]
        ['star', 'star']
    """
    # Rejection: start over where an object found no room or the relation does not hold.
    while True:
        objects = _place(prompt.objects, rng)
        if objects and (prompt.relation is None or _aligned(objects, prompt.relation)):
            return Scene(objects)


def _place(specs: tuple[ObjectSpec, ...], rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Random objects apart from one another; empty if one of them found no room in 20 tries."""
    placed: tuple[SceneObject, ...] = ()
    for spec in specs:
        free = (obj for obj in (_random_object(spec, len(specs), rng) for _ in range(20)) if _apart(obj, placed))
        obj = next(free, None)
        if obj is None:
            return ()
        placed += (obj,)
    return placed


def _random_object(spec: ObjectSpec, num_objects: int, rng: np.random.Generator) -> SceneObject:
    size = rng.uniform(*SIZES[num_objects])
    margin = size * EXTENTS[spec.shape] + GAP / 2
    return SceneObject(
        spec.shape,
        spec.color or tuple(COLORS)[rng.integers(len(COLORS))],
        x=rng.uniform(margin, 1 - margin),
        y=rng.uniform(margin, 1 - margin),
        size=size,
        rotation=rng.uniform(-MAX_ROTATION, MAX_ROTATION),
    )


def _apart(obj: SceneObject, others: tuple[SceneObject, ...]) -> bool:
    return all(math.hypot(obj.x - o.x, obj.y - o.y) > obj.extent + o.extent + GAP for o in others)


def _aligned(objects: tuple[SceneObject, ...], relation: str) -> bool:
    first, second = objects
    return alignment((first.x, first.y), (second.x, second.y), relation) > SAMPLED_ALIGNMENT


def true_prompts(scene: Scene) -> frozenset[ShapesPrompt]:
    """Every prompt of the grammar that a scene satisfies, held-out ones included.

    Args:
        scene: A scene of one to four objects.

    Returns:
        The prompts; empty where no form of sentence fits, as for three objects of different shapes.

    Examples:
        >>> ball = SceneObject("circle", "red", x=0.5, y=0.5, size=0.2)
        >>> sorted(prompt.text for prompt in true_prompts(Scene((ball,))))
        ['a photo of a circle', 'a photo of a red circle']
    """
    shapes = [obj.shape for obj in scene.objects]
    if len(shapes) == 1:
        (obj,) = scene.objects
        single = ShapesPrompt("single_object", (ObjectSpec(obj.shape),))
        return frozenset({single, ShapesPrompt("colors", (ObjectSpec(obj.shape, obj.color),))})
    if len(set(shapes)) == 1:
        return frozenset({ShapesPrompt("counting", tuple(ObjectSpec(shape) for shape in shapes))})
    if len(shapes) == 2:
        return frozenset(prompt for pair in permutations(scene.objects) for prompt in _pair_prompts(*pair))
    return frozenset()


def _pair_prompts(first: SceneObject, second: SceneObject) -> list[ShapesPrompt]:
    plain = (ObjectSpec(first.shape), ObjectSpec(second.shape))
    colored = (ObjectSpec(first.shape, first.color), ObjectSpec(second.shape, second.color))
    centres = ((first.x, first.y), (second.x, second.y))
    prompts = [ShapesPrompt("two_object", plain)]
    prompts += [ShapesPrompt("position", plain, r) for r in RELATIONS if alignment(*centres, r) > MIN_ALIGNMENT]
    if first.color != second.color:
        prompts.append(ShapesPrompt("color_attr", colored))
    return prompts
