"""Preference records as a torch dataset, and batches of them for one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from fk_reward.training.preference_data import LabelledImage, PreferenceItem, PreferencePair


class PreferenceDataset(Dataset):
    """Records whose images are decoded when they are asked for; light to send to the workers of a loader.

    Args:
        items: preference pairs, or labelled images; not both.

    Raises:
        TypeError: for other records, or both kinds.
        ValueError: for no records.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.training import read_preferences
        >>> red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
        >>> pairs = read_preferences([{"prompt": "a red square", "chosen_path": red, "reject_path": blue}])
        >>> row = PreferenceDataset(pairs)[0]
        >>> row["prompts"], [tuple(image.shape) for image in row["images"]], row["margin"]
        (('a red square', 'a red square'), [(3, 6, 8), (3, 6, 8)], None)
    """

    def __init__(self, items: Sequence[PreferenceItem]) -> None:
        if not items:
            raise ValueError("A dataset needs at least one record.")
        kinds = {type(item) for item in items}
        if len(kinds) > 1 or not kinds <= {PreferencePair, LabelledImage}:
            names = sorted(kind.__name__ for kind in kinds)
            raise TypeError(f"Expected records that are all PreferencePair or all LabelledImage, got {names}.")
        self.items = list(items)
        self.is_labelled = kinds == {LabelledImage}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Prompts and decoded images of one record, with its margin (None where it has none) or its label."""
        item = self.items[index]
        row = {"images": [image.load() for image in item.images], "prompts": item.prompts}
        return row | ({"label": item.label} if isinstance(item, LabelledImage) else {"margin": item.margin})


def collate_preferences(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join rows of a `PreferenceDataset` into a batch that goes through the reward in one forward pass.

    Args:
        rows: B rows of pairs, or of labelled images.

    Returns:
        For pairs `images` and `prompts` with 2 B entries, the chosen rows before the rejected ones, in the same order,
        and `margin`: (B,) float32, 0 for a row without one, or None where no row has one. For labelled images `images`
        and `prompts` with B entries and `labels`: (B,) float32 of 0 and 1. An image is (3, H, W) float32 in [0, 1].

    Raises:
        ValueError: for no rows.

    Example:
        >>> cat, dog = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
        >>> batch = collate_preferences([{"images": [cat, dog], "prompts": ("a cat", "a dog"), "margin": 2.0}])
        >>> batch["prompts"], batch["margin"]
        (['a cat', 'a dog'], tensor([2.]))

    B: number of rows, H, W: height and width, which may differ between images.
    """
    if not rows:
        raise ValueError("Cannot make a batch of no rows.")
    places = range(len(rows[0]["images"]))
    batch: dict[str, Any] = {name: [row[name][i] for i in places for row in rows] for name in ("images", "prompts")}
    if "label" in rows[0]:
        return batch | {"labels": torch.tensor([float(row["label"]) for row in rows])}
    margins = [row["margin"] for row in rows]
    if all(margin is None for margin in margins):
        return batch | {"margin": None}
    return batch | {"margin": torch.tensor([0.0 if margin is None else float(margin) for margin in margins])}
