"""The fixed split into training and held-out prompts, by combination.

A combination is what a prompt puts together (`ShapesPrompt.combination`), so both orders of a pair, and all relations
between two shapes, fall on the same side. In each task the combinations are ranked by a hash of their name, and the
first fifth is held out: no random number generator is involved, the split is the same everywhere and for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from fk_reward.shapes.prompts import TASKS, ShapesPrompt, all_prompts

HELDOUT_SHARE = 0.2
SALT = "shapes 20"
"""Chosen so that the held-out counting prompts include each number."""


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@cache
def _heldout_combinations(task: str) -> frozenset[str]:
    names = sorted({prompt.combination for prompt in all_prompts(task)}, key=lambda name: _rank(f"{SALT} {name}"))
    return frozenset(names[: max(1, round(HELDOUT_SHARE * len(names)))])


def is_heldout(prompt: ShapesPrompt) -> bool:
    """Whether a prompt's combination is kept out of every training set.

    Examples:
        >>> is_heldout(heldout_prompts()[0]), is_heldout(train_prompts()[0])
        (True, False)
    """
    return prompt.combination in _heldout_combinations(prompt.task)


@cache
def train_prompts(task: str | None = None) -> tuple[ShapesPrompt, ...]:
    """The prompts that models may be trained on.

    Args:
        task: One of `TASKS`; None for all of them.

    Examples:
        >>> [len(train_prompts(task)) for task in TASKS]
        [5, 24, 14, 34, 96, 1008]
    """
    return tuple(prompt for prompt in all_prompts(task) if not is_heldout(prompt))


@cache
def heldout_prompts(task: str | None = None) -> tuple[ShapesPrompt, ...]:
    """The prompts that no model has seen as captions.

    Args:
        task: One of `TASKS`; None for all of them.

    Examples:
        >>> [len(heldout_prompts(task)) for task in TASKS]
        [1, 6, 4, 8, 24, 252]
    """
    return tuple(prompt for prompt in all_prompts(task) if is_heldout(prompt))


def benchmark_prompts(num_prompts: int, split: str = "heldout") -> tuple[ShapesPrompt, ...]:
    """A list of prompts, balanced over the tasks.

    The tasks take turns; each goes through its prompts in a fixed shuffled order and starts again when they are used
    up (the smaller tasks have few), so that a repeated prompt is meant to be drawn with another seed.

    Args:
        num_prompts: Length of the list.
        split: `"heldout"` for results, `"validation"` for choosing checkpoints (train-side prompts).

    Raises:
        ValueError: The split is unknown.

    Examples:
        >>> [prompt.task for prompt in benchmark_prompts(6)] == list(TASKS)
        True
    """
    sides = {"heldout": heldout_prompts, "validation": train_prompts}
    if split not in sides:
        raise ValueError(f"split must be one of {', '.join(sides)}; got {split!r}.")
    orders = [sorted(sides[split](task), key=lambda prompt: _rank(f"order {prompt.text}")) for task in TASKS]
    return take_turns(orders, num_prompts)


def take_turns(orders: Sequence[Sequence[ShapesPrompt]], num_prompts: int) -> tuple[ShapesPrompt, ...]:
    """One prompt of each list in turn; a list starts again when it is used up.

    Args:
        orders: Lists of prompts, none of them empty.
        num_prompts: How many prompts to give.

    Examples:
        >>> [prompt.text for prompt in take_turns([heldout_prompts("single_object"), heldout_prompts("counting")], 4)]
        ['a photo of a circle', 'a photo of four circles', 'a photo of a circle', 'a photo of three triangles']
    """
    turns = (divmod(i, len(orders)) for i in range(num_prompts))
    return tuple(orders[place][turn % len(orders[place])] for turn, place in turns)
