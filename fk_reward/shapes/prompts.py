"""The prompt grammar, six tasks under GenEval's names with one sentence form each, and its fixed split.

Prompts are held out by what they combine (`ShapesPrompt.combination`), so both orders of a pair, and all relations
between two shapes, fall on the same side. In each task the combinations are ranked by a hash of their name, and the
first fifth is held out: without a random generator, the split is the same on all platforms and versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

from fk_reward.shapes.scene import COLORS, RELATIONS, SHAPES

TASKS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's task names, in GenEval's order."""

NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four"}

GRAMMAR = """a photo of a SHAPE
a photo of a SHAPE and a SHAPE
a photo of two|three|four SHAPEs
a photo of a COLOR SHAPE
a photo of a SHAPE left of|right of|above|below a SHAPE
a photo of a COLOR SHAPE and a COLOR SHAPE"""


@dataclass(frozen=True)
class ObjectSpec:
    """What a prompt says of an object; `color` is None for any colour."""

    shape: str
    color: str | None = None

    def __str__(self) -> str:
        """The noun phrase with its article."""
        words = f"{self.color} {self.shape}" if self.color else self.shape
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class ShapesPrompt:
    """A sentence of the grammar and its content.

    Attributes:
        task: One of `TASKS`.
        objects: The objects to show, one entry each, in the order of the sentence.
        relation: One of `RELATIONS`, of the first object to the second; None except in the task `position`.

    Examples:
        >>> ShapesPrompt("position", (ObjectSpec("square"), ObjectSpec("circle")), "left of").text
        'a photo of a square left of a circle'
        >>> ShapesPrompt("counting", (ObjectSpec("cross"),) * 3).text
        'a photo of three crosses'
    """

    task: str
    objects: tuple[ObjectSpec, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        """The sentence."""
        if self.task == "counting":
            return f"a photo of {NUMBERS[len(self.objects)]} {_plural(self.objects[0].shape)}"
        link = f" {self.relation or 'and'} "
        return f"a photo of {link.join(map(str, self.objects))}"

    @property
    def combination(self) -> str:
        """Name of what the prompt combines, the same for both orders of a pair and for all four relations.

        Examples:
            >>> parse_prompt("a photo of a star above a circle").combination
            'position: circle, star'
        """
        words = sorted(f"{spec.color or ''} {spec.shape}".strip() for spec in self.objects)
        return f"{self.task}: {', '.join(words)}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _task_prompts(task: str) -> Iterator[ShapesPrompt]:
    plain = [ObjectSpec(shape) for shape in SHAPES]
    colored = [ObjectSpec(shape, color) for shape in SHAPES for color in COLORS]
    if task == "single_object":
        yield from (ShapesPrompt(task, (spec,)) for spec in plain)
    elif task == "two_object":
        yield from (ShapesPrompt(task, pair) for pair in permutations(plain, 2))
    elif task == "counting":
        yield from (ShapesPrompt(task, (spec,) * number) for spec in plain for number in NUMBERS)
    elif task == "colors":
        yield from (ShapesPrompt(task, (spec,)) for spec in colored)
    elif task == "position":
        yield from (ShapesPrompt(task, pair, name) for pair in permutations(plain, 2) for name in RELATIONS)
    else:
        pairs = ((a, b) for a, b in permutations(colored, 2) if a.shape != b.shape and a.color != b.color)
        yield from (ShapesPrompt(task, pair) for pair in pairs)


@cache
def all_prompts(task: str | None = None) -> tuple[ShapesPrompt, ...]:
    """Every sentence of the grammar, in a fixed order.

    Args:
        task: One of `TASKS`; None for all of them.

    Raises:
        ValueError: The task is not one of `TASKS`.

    Examples:
        >>> [len(all_prompts(task)) for task in TASKS]
        [6, 30, 18, 42, 120, 1260]
    """
    if task is None:
        return tuple(prompt for name in TASKS for prompt in all_prompts(name))
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}.")
    return tuple(_task_prompts(task))


@cache
def _by_text() -> dict[str, ShapesPrompt]:
    return {prompt.text: prompt for prompt in all_prompts()}


def parse_prompt(text: str) -> ShapesPrompt:
    """Parse a sentence.

    Case, surrounding blanks and a final full stop do not matter.

    Raises:
        ValueError: The sentence is not in the grammar; the message states the grammar.

    Examples:
        >>> parse_prompt("A photo of an orange circle").objects
        (ObjectSpec(shape='circle', color='orange'),)
    """
    prompt = _by_text().get(" ".join(text.lower().split()).rstrip("."))
    if prompt is None:
        raise ValueError(
            f"{text!r} is not a sentence of the shapes world. Use one of these forms, the shapes of a pair and their "
            f"colors being different:\n{GRAMMAR}\nSHAPE: {', '.join(SHAPES)}\nCOLOR: {', '.join(COLORS)}"
        )
    return prompt


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
    up (the smaller tasks have few); draw a repeated prompt with another seed.

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
        orders: Lists of prompts, each with at least one.
        num_prompts: Length of the result.

    Examples:
        >>> [prompt.text for prompt in take_turns([heldout_prompts("single_object"), heldout_prompts("counting")], 4)]
        ['a photo of a circle', 'a photo of four circles', 'a photo of a circle', 'a photo of three triangles']
    """
    turns = (divmod(i, len(orders)) for i in range(num_prompts))
    return tuple(orders[place][turn % len(orders[place])] for turn, place in turns)
