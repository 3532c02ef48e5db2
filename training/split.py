"""Validation data by prompt: no prompt is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import PreferenceItem, PreferenceRecord

ItemT = TypeVar("ItemT", bound=PreferenceItem)


def split_by_prompt(items: Sequence[ItemT], *, fraction: float, seed: int) -> tuple[list[ItemT], list[ItemT]]:
    """Split records into training and validation so that no prompt is on both sides.

    Prompts that stand in one record (a prompt pair) stay together, and so do, through them, chains of records. Images
    without a prompt go by the image. The groups are ranked by a SHA-256 hash of seed and prompts and taken while they
    fit, so that the split depends neither on the order of the records nor on a random generator.

    Args:
        items: pairs or labelled images.
        fraction: share of the *records* for validation, in (0, 1); what is taken is at most that, but for one group
            where no group fits.
        seed: another seed, another split.

    Returns:
        Training and validation records, each in the order of `items`.

    Raises:
        ValueError: for a fraction outside (0, 1), or when all records belong together.

    Example:
        >>> from fk_reward.training import LabelledImage
        >>> image = ImageSource(Path("a.png"))
        >>> items = [LabelledImage(prompt=p, image=image, label=True) for p in ("a", "b", "c", "d", "a", "b", "c", "d")]
        >>> train, validation = split_by_prompt(items, fraction=0.25, seed=0)
        >>> len(train), len(validation), validation[0].prompt == validation[1].prompt
        (6, 2, True)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}.")
    names = _group_names([_keys(item) for item in items])
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    if len(groups) < 2:
        raise ValueError(f"Cannot split {len(items)} records that all belong to one group of prompts.")
    chosen = _choose({name: len(rows) for name, rows in groups.items()}, target=fraction * len(items), seed=seed)
    train = [item for item, name in zip(items, names, strict=True) if name not in chosen]
    validation = [item for item, name in zip(items, names, strict=True) if name in chosen]
    return train, validation


def _keys(item: PreferenceRecord) -> list[str]:
    """What ties a record to others: its prompts up to case and spaces, or its image where it has none."""
    prompts = [" ".join(prompt.lower().split()) for prompt in item.prompts]
    return [f"prompt {prompt}" if prompt else f"image {_image_name(item.images[0])}" for prompt in prompts]


def _image_name(image: ImageSource) -> str:
    return str(image.content) if isinstance(image.content, Path) else image.digest()


def _group_names(keys: Sequence[Sequence[str]]) -> list[str]:
    """For each record the first, by the alphabet, of all keys that it is connected with (union-find)."""
    parent = {key: key for linked in keys for key in linked}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for linked in keys:
        first, *others = sorted({root(key) for key in linked})
        parent.update(dict.fromkeys(others, first))
    return [root(linked[0]) for linked in keys]


def _choose(sizes: dict[str, int], *, target: float, seed: int) -> set[str]:
    """Groups in the order of their hashes while they fit into the target; the smallest where none does."""
    ranked = _ranked(sizes, seed)
    chosen, num_taken = set(), 0
    for name in ranked:
        if num_taken + sizes[name] <= target + 1e-9:
            chosen.add(name)
            num_taken += sizes[name]
    return chosen or {min(ranked, key=lambda name: sizes[name])}


def _ranked(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed} {name}".encode()).hexdigest(), name))
