"""Preference records as a torch dataset, batches of them, and a part of them for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import ItemT, LabelledImage, PreferenceItem, PreferencePair, PromptedImage


class PreferenceDataset(Dataset[PreferenceItem]):
    """Records of one kind; their images are decoded by `collate_preferences`, in the workers of a loader.

    Args:
        items: preference pairs, or labelled images; not both.
        is_ordered: whether a trainer is to take them in this order, as of a curriculum.

    Raises:
        TypeError: for other records, or both kinds.
        ValueError: for no records.
    """

    def __init__(self, items: Sequence[PreferenceItem], *, is_ordered: bool = False) -> None:
        if not items:
            raise ValueError("A dataset needs at least one record.")
        kinds = {type(item) for item in items}
        if len(kinds) > 1 or not kinds <= {PreferencePair, LabelledImage}:
            names = sorted(kind.__name__ for kind in kinds)
            raise TypeError(f"Expected records that are all PreferencePair or all LabelledImage, got {names}.")
        self.items = list(items)
        self.is_labelled = kinds == {LabelledImage}
        self.is_ordered = is_ordered

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> PreferenceItem:
        """One record."""
        return self.items[index]


def collate_preferences(items: Sequence[PreferenceItem]) -> dict[str, Any]:
    """Decode the images of some records and join them into a batch for one forward pass of the reward.

    Args:
        items: B pairs, or B labelled images.

    Returns:
        For pairs `images` and `prompts` with 2 B entries, the chosen rows before the rejected ones, in the same order,
        and `margin`: (B,) float32, 0 for a pair without one, or None where no pair has one. For labelled images
        `images` and `prompts` with B entries and `labels`: (B,) float32 of 0 and 1. An image is (3, H, W)
        uint8.

    Raises:
        UnreadableImageError: a ValueError, for an image that cannot be decoded.
        ValueError: for no records.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.training import read_preferences
        >>> red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
        >>> pairs = read_preferences([{"prompt": "a red square", "chosen_path": red, "reject_path": blue}])
        >>> batch = collate_preferences(pairs)
        >>> batch["prompts"], [tuple(image.shape) for image in batch["images"]], batch["margin"]
        (['a red square', 'a red square'], [(3, 6, 8), (3, 6, 8)], None)

    B: number of records, H, W: height and width, which may differ between images.
    """
    if not items:
        raise ValueError("Cannot make a batch of no records.")
    # Chosen before rejected, so that `chunk(2)` of the outputs separates them.
    positions = range(len(items[0].prompts))
    images = [[image.load(keep_uint8=True) for image in item.images] for item in items]
    batch: dict[str, Any] = {
        "images": [of_item[i] for i in positions for of_item in images],
        "prompts": [item.prompts[i] for i in positions for item in items],
    }
    if isinstance(items[0], LabelledImage):
        return batch | {"labels": torch.tensor([float(cast("LabelledImage", item).label) for item in items])}
    margins = [cast("PreferencePair", item).margin for item in items]
    if all(margin is None for margin in margins):
        return batch | {"margin": None}
    return batch | {"margin": torch.tensor([0.0 if margin is None else float(margin) for margin in margins])}


def split_by_prompt(items: Sequence[ItemT], *, fraction: float, seed: int) -> tuple[list[ItemT], list[ItemT]]:
    """Split records into training and validation so that no prompt is on both sides.

    The two prompts of a record (a prompt pair) stay together, and so do chains of records that share prompts. Records
    without a prompt are grouped by image. The groups are ranked by a SHA-256 hash of seed and prompts and taken while
    they fit, so that the split depends neither on the order of the records nor on a random generator.

    Args:
        items: pairs or labelled images.
        fraction: share of the *records* for validation, in (0, 1). At most this share is taken, unless no group fits:
            then the smallest group.
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


def _keys(item: PreferencePair | PromptedImage) -> list[str]:
    """Keys that tie a record to others: its prompts without case and extra spaces, or its image without a prompt."""
    prompts = [" ".join(prompt.lower().split()) for prompt in item.prompts]
    return [f"prompt {prompt}" if prompt else f"image {_image_name(item.images[0])}" for prompt in prompts]


def _image_name(image: ImageSource) -> str:
    return str(image.content) if isinstance(image.content, Path) else image.digest()


def _group_names(keys: Sequence[Sequence[str]]) -> list[str]:
    """For each record the first, by the alphabet, of all keys that it is connected with (union-find)."""
    parent = {key: key for linked in keys for key in linked}

    def root(key: str) -> str:
        # A loop with path halving: chains may be longer than Python's stack is deep.
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for linked in keys:
        first, *others = sorted({root(key) for key in linked})
        parent.update(dict.fromkeys(others, first))
    return [root(linked[0]) for linked in keys]


def _choose(sizes: dict[str, int], *, target: float, seed: int) -> set[str]:
    """Groups in the order of their hashes while they fit into the target; the smallest where none does."""
    ranked = sorted(sizes, key=lambda name: (hashlib.sha256(f"{seed} {name}".encode()).hexdigest(), name))
    chosen, num_taken = set(), 0
    for name in ranked:
        if num_taken + sizes[name] <= target + 1e-9:  # fraction * number of records is rounded: 0.29 * 100 < 29
            chosen.add(name)
            num_taken += sizes[name]
    return chosen or {min(ranked, key=lambda name: sizes[name])}
