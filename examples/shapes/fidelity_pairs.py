"""Pairs of a clean and a broken image under one prompt: what a reward of fidelity must tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from alignment_pairs import pick
from artefacts import BREAKS, badly_decoded, break_shape, load_vae, noisy, out_of_focus
from preference_files import Pair
from prompt_sides import prompts_of
from sample_images import Draw, balanced
from scene_data import scene_images
from torch import Tensor

from fk_reward.shapes import TASKS, ShapesPrompt, detect, sample_scene

Clean = tuple[ShapesPrompt, Tensor, Tensor]
"""A prompt, an image of it, and the image to break: the same, or another one of the prompt."""

OTHER_SHARE = 0.25
"""How often the broken image shows another scene than the clean one."""


def rendered(prompts: Sequence[ShapesPrompt], rng: np.random.Generator) -> list[Clean]:
    """Scenes of prompts."""
    images = scene_images([sample_scene(prompt, rng) for prompt in prompts for _ in range(2)]).unflatten(0, (-1, 2))
    is_other = rng.random(len(prompts)) < OTHER_SHARE
    rows = zip(prompts, images, is_other, strict=True)
    return [(prompt, both[0], both[int(other)]) for prompt, both, other in rows]


def drawn(number: int, draws: Sequence[Draw], rng: np.random.Generator) -> list[Clean]:
    """Images that a model drew as it was told; fewer than `number` where there are not as many."""
    found = []
    for draw in draws:
        right = draw.images[draw.correct, -1]
        others = [pick(right, rng) if rng.random() < OTHER_SHARE else image for image in right]
        rows = [(draw.prompt, image, other) for image, other in zip(right, others, strict=True)]
        found.append([rows[i] for i in rng.permutation(len(rows))])
    return balanced(draws, found)[:number]


def clean_images(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Clean]:
    """Half of them drawn by a model, in random order."""
    clean = drawn(number // 2, draws, rng)
    tasks = islice(cycle(TASKS), number - len(clean))
    clean += rendered([pick(prompts_of(side, task), rng) for task in tasks], rng)
    return [clean[i] for i in rng.permutation(number)]


Artefact = Callable[[Tensor, np.random.Generator], tuple[Tensor, list[str]]]
"""Takes `(B, 3, 64, 64)` images in [0, 1]; returns them broken, and what was done to each."""


def _broken_shapes(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    kinds = list(islice(cycle(BREAKS), len(images)))
    broken = [break_shape(image, rng, kind) for image, kind in zip(images, kinds, strict=True)]
    return torch.stack(broken), [f"broken/{kind}" for kind in kinds]


def artefacts() -> dict[str, Artefact]:
    """The artefacts by name, with the autoencoder loaded for one of them."""
    vae = load_vae()
    return {
        "blur": lambda images, rng: (out_of_focus(images, rng), ["blur"] * len(images)),
        "noise": lambda images, rng: (noisy(images, rng), ["noise"] * len(images)),
        "broken": _broken_shapes,
        "vae": lambda images, rng: (badly_decoded(images, rng, vae), ["vae"] * len(images)),
    }


def _damaged(clean: Sequence[Clean], artefact: Artefact, rng: np.random.Generator) -> list[Pair]:
    broken, kinds = artefact(torch.stack([base for _, _, base in clean]) / 255, rng)
    rejected = broken.mul(255).round().byte()
    rows = zip(clean, rejected, kinds, strict=True)
    return [
        Pair(prompt=prompt, rejected_prompt=prompt, chosen=chosen, rejected=bad, kind=kind)
        for (prompt, chosen, _), bad, kind in rows
    ]


def malformed(draw: Draw) -> list[Tensor]:
    """Images in which the verifier sees something that has no shape; even a poor model draws some that are fine."""
    return [image for image in draw.images[:, -1] if any(seen.shape is None for seen in detect(image / 255))]


def early_pairs(number: int, draws: Sequence[Draw], early: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Against malformed images of the same prompt by a model that has hardly been trained; none if there are none."""
    order = [early[i] for i in rng.permutation(len(early))]
    found = balanced(order, [[(draw.prompt, image) for image in malformed(draw)] for draw in order])
    bad = list(islice(cycle(found), number))
    good = {draw.prompt: draw.images[draw.correct, -1] for draw in draws if draw.correct.any()}
    scenes = rendered([prompt for prompt, _ in bad], rng)
    pairs = []
    for (prompt, rejected), (_, scene, _) in zip(bad, scenes, strict=True):
        use_drawn = prompt in good and rng.random() < 0.5
        chosen = pick(good[prompt], rng) if use_drawn else scene
        pairs.append(Pair(prompt=prompt, rejected_prompt=prompt, chosen=chosen, rejected=rejected, kind="early"))
    return pairs


def fidelity_pairs(
    number: int, side: str, draws: Sequence[Draw], early: Sequence[Draw], rng: np.random.Generator
) -> list[Pair]:
    """All kinds alike; without images of an early model the other kinds share what would be theirs."""
    kinds = artefacts()
    pairs = early_pairs(number // (len(kinds) + 1), draws, early, rng) if early else []
    clean = clean_images(number - len(pairs), side, draws, rng)
    for turn, artefact in enumerate(list(kinds.values())[: len(clean)]):
        pairs += _damaged(clean[turn :: len(kinds)], artefact, rng)
    return pairs
