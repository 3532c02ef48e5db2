"""Prompts that differ in one respect, and the three sides of preference data: training, validation, held-out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    ShapesPrompt,
    all_prompts,
    heldout_prompts,
    is_heldout,
    train_prompts,
)
from fk_reward.shapes.prompts import NUMBERS
from fk_reward.shapes.scene import RELATIONS


def _replaced(prompt: ShapesPrompt, position: int, spec: ObjectSpec) -> ShapesPrompt:
    return replace(prompt, objects=(*prompt.objects[:position], spec, *prompt.objects[position + 1 :]))


def _changes(prompt: ShapesPrompt) -> dict[str, list[ShapesPrompt]]:
    """All sentences one change away, by the kind of change; some of them may not be in the grammar."""
    specs = prompt.objects
    if prompt.task == "counting":
        counts = [replace(prompt, objects=specs[:1] * number) for number in NUMBERS]
        return {"count": counts, "shape": [replace(prompt, objects=(ObjectSpec(s),) * len(specs)) for s in SHAPES]}
    kinds = {"shape": [_replaced(prompt, i, replace(o, shape=s)) for i, o in enumerate(specs) for s in SHAPES]}
    if prompt.relation:
        kinds["relation"] = [replace(prompt, relation=name) for name in RELATIONS]
        kinds["swap"] = [replace(prompt, objects=specs[::-1])]
    if specs[0].color:
        kinds["color"] = [_replaced(prompt, i, replace(o, color=c)) for i, o in enumerate(specs) for c in COLORS]
    if prompt.task == "color_attr":
        colors = [spec.color for spec in reversed(specs)]
        swapped = tuple(replace(spec, color=color) for spec, color in zip(specs, colors, strict=True))
        kinds["swap"] = [replace(prompt, objects=swapped)]
    return kinds


@cache
def _grammar(task: str) -> frozenset[ShapesPrompt]:
    return frozenset(all_prompts(task))


@cache
def hard_negatives(prompt: ShapesPrompt) -> dict[str, tuple[ShapesPrompt, ...]]:
    """Prompts of the task that differ in one respect: shape, color, count, relation, or swap (of colours or places)."""
    grammar = _grammar(prompt.task)
    kinds = {kind: tuple(p for p in found if p in grammar and p != prompt) for kind, found in _changes(prompt).items()}
    return {kind: found for kind, found in kinds.items() if found}


class HardGroups(Dataset):
    """Groups of scenes whose prompts are one change away from an anchor's, the same for the same seed and index.

    A batch holds `images` `(B, 3, 64, 64)` uint8, `prompts` `(B,)` and `true_prompts` `(B, 8)`, group after group.
    """

    def __init__(self, data: dict[str, Tensor], *, group_size: int, length: int, seed: int) -> None:
        self.data, self.group_size, self.length, self.seed = data, group_size, length, seed
        self.prompts = all_prompts()
        self.index = {prompt: i for i, prompt in enumerate(self.prompts)}
        self.rows: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(data["prompts"].tolist()):
            self.rows[prompt].append(row)

    def __len__(self) -> int:
        return self.length

    def _group(self, index: int) -> list[int]:
        """Rows of one group."""
        rng = np.random.default_rng((self.seed, index))
        anchor = int(rng.integers(len(self.data["prompts"])))
        kinds = hard_negatives(self.prompts[int(self.data["prompts"][anchor])])
        trained = [[self.index[p] for p in found if self.index[p] in self.rows] for found in kinds.values()]
        trained = [found for found in trained if found]
        rows = [anchor]
        for i in range(self.group_size - 1):
            found = trained[(i + index) % len(trained)]
            candidates = self.rows[found[rng.integers(len(found))]]
            rows.append(candidates[rng.integers(len(candidates))])
        return rows

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.tensor([row for index in indices for row in self._group(index)])
        return {name: tensor[rows] for name, tensor in self.data.items()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])


SIDES = ("train", "validation", "heldout")
VALIDATION_SHARE = 0.1
"""Of the combinations of each task that are not held out, at least one."""


@cache
def _validation_combinations(task: str) -> frozenset[str]:
    names = {prompt.combination for prompt in train_prompts(task)}
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"validation {name}".encode()).hexdigest())
    return frozenset(ranked[: max(1, round(VALIDATION_SHARE * len(ranked)))])


def side_of(prompt: ShapesPrompt) -> str:
    """Which of `SIDES` a prompt is on; decided by its combination, as the split into training and held-out prompts."""
    if is_heldout(prompt):
        return "heldout"
    return "validation" if prompt.combination in _validation_combinations(prompt.task) else "train"


@cache
def prompts_of(side: str, task: str | None = None) -> tuple[ShapesPrompt, ...]:
    """Prompts of one side, of one task or of all."""
    if side == "heldout":
        return heldout_prompts(task)
    return tuple(prompt for prompt in train_prompts(task) if side_of(prompt) == side)


@cache
def false_caption_pool(side: str) -> frozenset[ShapesPrompt]:
    """Prompts that may be false captions: what is trained on stays on its side, what is measured may use more.

    Validation and held-out combinations are so few in some tasks that their neighbours are all on another side.
    """
    return frozenset({"train": prompts_of("train"), "validation": train_prompts(), "heldout": all_prompts()}[side])


@cache
def neighbours(prompt: ShapesPrompt, side: str) -> dict[str, tuple[ShapesPrompt, ...]]:
    """Hard negatives of a prompt that may be captions on a side, by the kind of difference."""
    pool = false_caption_pool(side)
    kinds = {kind: tuple(p for p in found if p in pool) for kind, found in hard_negatives(prompt).items()}
    return {kind: found for kind, found in kinds.items() if found}
