"""The three sides of preference data: prompts to train on, prompts to choose checkpoints by, held-out prompts."""

from __future__ import annotations

import hashlib
from functools import cache

from hard_negatives import hard_negatives

from fk_reward.shapes import ShapesPrompt, all_prompts, heldout_prompts, is_heldout, train_prompts

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
