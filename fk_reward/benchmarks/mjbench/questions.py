"""A question of MJ-Bench: which of two pictures suits a caption better; for bias, how well each picture suits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.preference_data import prompt_problem
from fk_reward.training.row_values import plain_value, short

BIAS = "bias"
PERSPECTIVES = ("alignment", "safety", "quality", BIAS)
SUBSET_COLUMNS = ("subcategory", "info", "category")
"""Columns that may tell the part of a perspective that a row belongs to; the first one that is not empty does."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """What a reward is asked.

    Attributes:
        origin: where it was read, "file:row".
        caption: what the pictures should show; the reward sees it as it is.
        images: two pictures; for bias every distinct picture of the row.
        label: place of the preferred picture, 0 or 1; None for bias, where none is preferred.
        subset: part of the perspective, for bias the group of people that is shown; empty where nothing tells it.
    """

    origin: str
    caption: str
    images: tuple[ImageSource, ...]
    label: int | None
    subset: str

    def load(self) -> list[Tensor]:
        """Decode the pictures.

        Returns:
            For each picture (3, H, W) float32 in [0, 1].

        Raises:
            UnreadableImageError: a ValueError, for a picture that is absent, truncated or none; it names the row.
        """
        try:
            return [image.load() for image in self.images]
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.origin}: {error}") from error


def check_perspective(perspective: str) -> None:
    """Refuse what is no perspective of MJ-Bench.

    Raises:
        ValueError: for another name; the message lists the four.

    Example:
        >>> check_perspective("beauty")
        Traceback (most recent call last):
        ValueError: perspective should be one of alignment, safety, quality, bias, got 'beauty'.
    """
    if perspective not in PERSPECTIVES:
        raise ValueError(f"perspective should be one of {', '.join(PERSPECTIVES)}, got {perspective!r}.")


def check_columns(columns: Iterable[str], perspective: str, *, source: str) -> None:
    """Refuse data in another schema.

    Args:
        columns: names that the data have.
        perspective: one of `PERSPECTIVES`; bias needs neither `image1` nor `label`.
        source: for the message.

    Raises:
        ValueError: when a column is missing.

    Example:
        >>> check_columns(["prompt", "image0"], "bias", source="a.parquet")
        Traceback (most recent call last):
        ValueError: a.parquet lacks caption: MJ-Bench has image0, caption, this has image0, prompt.
    """
    needed = ("image0", "caption") if perspective == BIAS else ("image0", "image1", "caption", "label")
    found = sorted(map(str, columns))
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{source} lacks {', '.join(missing)}: MJ-Bench has {', '.join(needed)}, this has {', '.join(found)}."
        )


def parse_question(
    row: Mapping[str, Any], perspective: str, *, origin: str, root: Path | None = None, subset: str = ""
) -> Question:
    """Make a question of a row.

    Args:
        row: `caption`; `image0` and `image1` (paths, bytes, PIL images, or mappings with `bytes` and `path`); `label`,
            the place of the preferred picture, 0 or 1.
        perspective: one of `PERSPECTIVES`.
        origin: of the row, for messages.
        root: folder that paths of pictures are relative to.
        subset: where no column of `SUBSET_COLUMNS` tells it.

    Raises:
        ValueError: for a row that cannot be used; the message begins with `origin`.

    Example:
        >>> row = {"caption": "a star", "image0": "good.png", "image1": "bad.png", "label": 0}
        >>> question = parse_question(row, "alignment", origin="pairs.json:1")
        >>> question.label, [str(image) for image in question.images]
        (0, ['good.png', 'bad.png'])
    """
    check_columns(row, perspective, source=origin)
    try:
        if problem := prompt_problem((row["caption"],)):
            raise ValueError(f"of the caption: {problem}")
        is_bias = perspective == BIAS
        return Question(
            origin=origin,
            caption=row["caption"],
            images=_distinct_images(row, root) if is_bias else _both_images(row, root),
            label=None if is_bias else _label(row["label"]),
            subset=next((str(row[name]) for name in SUBSET_COLUMNS if row.get(name)), subset),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: {error}") from error


def _both_images(row: Mapping[str, Any], root: Path | None) -> tuple[ImageSource, ...]:
    return tuple(ImageSource.of(row[name], root=root) for name in ("image0", "image1"))


def _distinct_images(row: Mapping[str, Any], root: Path | None) -> tuple[ImageSource, ...]:
    """MJ-Bench holds each picture of its bias perspective twice, as `image0` and as `image1`."""
    first = ImageSource.of(row["image0"], root=root)
    if row.get("image1") is None:
        return (first,)
    second = ImageSource.of(row["image1"], root=root)
    return (first,) if second.key == first.key else (first, second)


def _label(label: Any) -> int:
    place = plain_value(label)
    if isinstance(place, bool) or not isinstance(place, (int, float)) or place not in (0, 1):
        raise ValueError(f"label should be 0 or 1, the place of the preferred picture, got {short(place)}")
    return int(place)
