"""Questions about a scene with their answers: what the multimodal LLM of the shapes world learns to talk about.

No sentence names what a held-out prompt combines: neither in a question nor in an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from prompt_sides import hard_negatives

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    Scene,
    SceneObject,
    ShapesPrompt,
    is_heldout,
    train_prompts,
    true_prompts,
)
from fk_reward.shapes.scene import RELATIONS, alignment

Dialogue = list[tuple[str, str]]
"""Questions and their answers."""


class Match(NamedTuple):
    """A caption by itself, in the place where a reward reads it, and whether it is true."""

    caption: str
    answer: str


CAPTION_QUESTION = "Is this "
NUMBER_WORDS = ("zero", "one", "two", "three", "four")
CLEAR_ALIGNMENT = 0.8
"""Questions about a relation are asked where it holds, or fails, by a margin."""


def _pick(rng: np.random.Generator, items: Iterable) -> str:
    found = list(items)
    return found[rng.integers(len(found))]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _place(obj: SceneObject) -> str:
    """Which ninth of the canvas an object's centre is in."""
    row, column = ("top", "middle", "bottom")[int(obj.y * 2.999)], ("left", "centre", "right")[int(obj.x * 2.999)]
    return f"{row} {column}"


def _may_name(*specs: ObjectSpec) -> bool:
    """Whether no held-out prompt combines just these objects, with their colours or without them."""
    if len(specs) == 1:
        return not is_heldout(ShapesPrompt("colors", specs))
    plain = tuple(ObjectSpec(spec.shape) for spec in specs)
    prompts = (("color_attr", specs), ("two_object", plain), ("position", plain))
    return not any(is_heldout(ShapesPrompt(*prompt)) for prompt in prompts)


def _spec(obj: SceneObject) -> ObjectSpec:
    return ObjectSpec(obj.shape, obj.color)


def _alone(scene: Scene) -> list[SceneObject]:
    """The objects that no other one shares its shape with."""
    shapes = [obj.shape for obj in scene.objects]
    return [obj for obj in scene.objects if shapes.count(obj.shape) == 1]


def ask_to_list(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """All objects with their places, in reading order."""
    objects = sorted(scene.objects, key=lambda obj: (int(obj.y * 2.999), obj.x))
    singles = all(_may_name(_spec(obj)) for obj in objects)
    if not singles or any(map(is_heldout, true_prompts(scene))):
        return []
    return [("List all objects.", ", ".join(f"{o.color} {o.shape} {_place(o)}" for o in objects))]


def ask_for_caption(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """A true caption."""
    captions = sorted(prompt.text for prompt in true_prompts(scene) if not is_heldout(prompt))
    return [("Describe the picture.", _pick(rng, captions))] if captions else []


def ask_for_count(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """How many of everything, of a shape, or of a colour."""
    kind = rng.integers(3)
    if kind == 0:
        return [("How many objects are there?", NUMBER_WORDS[len(scene.objects)])]
    names = [obj.shape if kind == 1 else obj.color for obj in scene.objects]
    name = _pick(rng, names) if rng.random() < 0.7 else _pick(rng, SHAPES if kind == 1 else COLORS)
    return [(f"How many objects are {'of the shape ' if kind == 1 else ''}{name}?", NUMBER_WORDS[names.count(name)])]


def ask_for_color(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """The colour of an object that is alone in its shape."""
    alone = [obj for obj in _alone(scene) if _may_name(_spec(obj))]
    if not alone:
        return []
    obj = alone[rng.integers(len(alone))]
    return [(f"Which color has the {obj.shape}?", obj.color)]


def ask_for_place(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Which ninth of the canvas an object is in that is alone in its shape."""
    alone = [obj for obj in _alone(scene) if _may_name(_spec(obj))]
    if not alone:
        return []
    obj = alone[rng.integers(len(alone))]
    name = f"{obj.color} {obj.shape}" if rng.random() < 0.5 else obj.shape
    return [(f"Where is the {name}?", _place(obj))]


def ask_whether_there_is(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Whether an object of a colour and shape is there; half of those asked for are, the others are near misses."""
    seen = {_spec(obj) for obj in scene.objects}
    anchor = _spec(scene.objects[rng.integers(len(scene.objects))])
    near = [ObjectSpec(anchor.shape, color) for color in COLORS] + [ObjectSpec(s, anchor.color) for s in SHAPES]
    wanted = anchor if rng.random() < 0.5 else near[rng.integers(len(near))]
    return [(f"Is there {wanted}?", _yes(wanted in seen))] if _may_name(wanted) else []


def _related(scene: Scene) -> list[tuple[SceneObject, str, SceneObject]]:
    """Pairs of objects, each alone in its shape, and the relations that clearly hold."""
    alone = _alone(scene)
    pairs = [(a, b) for a in alone for b in alone if a is not b and _may_name(ObjectSpec(a.shape), ObjectSpec(b.shape))]
    return [
        (a, relation, b)
        for a, b in pairs
        for relation in RELATIONS
        if alignment((a.x, a.y), (b.x, b.y), relation) > CLEAR_ALIGNMENT
    ]


def ask_for_relation(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Whether an object stands in a relation to another, or in which."""
    found = _related(scene)
    if not found:
        return []
    first, relation, second = found[rng.integers(len(found))]
    if rng.random() < 0.3:
        return [(f"Where is the {first.shape}, seen from the {second.shape}?", relation)]
    asked = relation if rng.random() < 0.5 else _pick(rng, [name for name in RELATIONS if name != relation])
    return [(f"Is the {first.shape} {asked} the {second.shape}?", _yes(asked == relation))]


@cache
def _containing(scene_specs: frozenset[ObjectSpec]) -> tuple[ShapesPrompt, ...]:
    """Training prompts whose objects are all among those of a scene."""
    known = {*scene_specs, *(ObjectSpec(spec.shape) for spec in scene_specs)}
    return tuple(p for p in train_prompts() if set(p.objects) <= known)


OFTENER = {"swap": 3, "relation": 3}
"""How often false captions of a kind are taken. Where colours or places alone are wrong, all that is named is there."""


def ask_whether_it_shows(scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Whether a caption is true of the image and leaves nothing out; false ones miss it in one respect."""
    true = sorted((p for p in true_prompts(scene) if not is_heldout(p)), key=lambda prompt: prompt.text)
    if true and rng.random() < 0.5:
        return [(f"{CAPTION_QUESTION}{_pick(rng, true).text}?", "yes")]
    if true:
        kinds = hard_negatives(_pick(rng, true))
        near = kinds[_pick(rng, [kind for kind in sorted(kinds) for _ in range(OFTENER.get(kind, 1))])]
    else:
        near = _containing(frozenset(map(_spec, scene.objects)))
    false = [prompt for prompt in near if not is_heldout(prompt) and prompt not in true_prompts(scene)]
    return [(f"{CAPTION_QUESTION}{_pick(rng, false).text}?", "no")] if false else []


QUESTIONS: dict[Callable[[Scene, np.random.Generator], Dialogue], float] = {
    ask_to_list: 1.0,
    ask_for_caption: 1.0,
    ask_for_count: 1.5,
    ask_for_color: 1.0,
    ask_whether_there_is: 1.0,
    ask_for_relation: 1.5,
    ask_whether_it_shows: 4.0,
}
"""Kinds of questions and how often each is asked."""

ABOUT_PLACES = {ask_to_list: 1.0, ask_for_relation: 2.0, ask_for_place: 2.0}
"""What is asked besides where places matter most, times a weight."""


def dialogue(scene: Scene, rng: np.random.Generator, *, length: int = 5, place_weight: float = 0.0) -> Dialogue:
    """About `length` questions of random kinds, in random order; at least one."""
    kinds = list(dict.fromkeys((*QUESTIONS, *ABOUT_PLACES)))
    shares = np.array([QUESTIONS.get(ask, 0.0) + place_weight * ABOUT_PLACES.get(ask, 0.0) for ask in kinds])
    found: Dialogue = []
    while not found:
        chosen = rng.choice(len(kinds), size=length, p=shares / shares.sum())
        found = [pair for index in chosen for pair in kinds[index](scene, rng)]
    return list(dict.fromkeys(found))


def dialogue_about_drawn(
    scene: Scene, prompt: ShapesPrompt, rng: np.random.Generator, *, correct: bool, place_weight: float = 0.0
) -> Dialogue:
    """Whether an image that was drawn of a prompt shows it; and other questions, unless `scene` has no objects."""
    own = (f"{CAPTION_QUESTION}{prompt.text}?", _yes(correct))
    others = dialogue(scene, rng, place_weight=place_weight) if scene.objects else []
    return [own, *(pair for pair in others if pair[0] != own[0])]


def match(turns: Dialogue) -> Match | None:
    """The first caption that a dialogue asks about."""
    asked = ((q.removeprefix(CAPTION_QUESTION), a) for q, a in turns if q.startswith(CAPTION_QUESTION))
    return next((Match(question.removesuffix("?"), answer) for question, answer in asked), None)
