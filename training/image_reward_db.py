"""ImageRewardDB: images rated by experts, turned into pairs of one prompt for one dimension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import PreferencePair, image_problem, prompt_problem
from fk_reward.training.row_values import finite_number, is_missing

RATINGS: dict[str, str] = {
    "alignment": "image_text_alignment_rating",
    "fidelity": "fidelity_rating",
    "overall": "overall_rating",
}
"""Dimension -> column of ImageRewardDB (Xu et al. 2023, arXiv 2304.05977)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RatedImage:
    """An image of a prompt with one rating, higher is better.

    Attributes:
        prompt_id: the prompt's id; images are compared within one.
        prompt: the prompt.
        image: the image.
        rating: finite number.
        origin: where it was read, "file:row".
    """

    prompt_id: str
    prompt: str
    image: ImageSource
    rating: float
    origin: str = ""

    @property
    def prompts(self) -> tuple[str]:
        """The prompt, as of a pair."""
        return (self.prompt,)

    @property
    def images(self) -> tuple[ImageSource]:
        """The image, as of a pair."""
        return (self.image,)

    def problem(self) -> str | None:
        """What is wrong with the fields, None where nothing is."""
        return prompt_problem(self.prompts) or image_problem(self.images)


def rating_column(dimension: str | None) -> str:
    """Column that rates a dimension.

    Raises:
        ValueError: for a dimension that ImageRewardDB does not rate, or None.

    Example:
        >>> rating_column("alignment")
        'image_text_alignment_rating'
    """
    if dimension not in RATINGS:
        raise ValueError(
            f"These rows are rated for {', '.join(RATINGS)}: choose a dimension of these, got {dimension!r}."
        )
    return RATINGS[dimension]


def rated_image(row: Mapping[str, Any], *, column: str, root: Path | None = None, origin: str = "") -> RatedImage:
    """Read one row of ImageRewardDB: `prompt_id`, `prompt`, `image` or `image_path`, and the rating.

    Raises:
        TypeError: for a rating that is no number, or no image.
        ValueError: for a rating that is not finite, or an absent column.

    Example:
        >>> row = {"prompt_id": "1", "prompt": "a cat", "image_path": "cat.webp", "overall_rating": 5, "rank": 2}
        >>> rated_image(row, column="overall_rating").rating
        5.0
    """
    if is_missing(row.get("prompt_id")):
        raise ValueError(f"lacks prompt_id; it has {sorted(map(str, row))}")
    rating = finite_number(row.get(column), column)
    image = row.get("image")
    return RatedImage(
        prompt_id=str(row["prompt_id"]),
        prompt=row.get("prompt"),  # type: ignore[arg-type] # `problem` tells what is wrong with it
        image=ImageSource.of(row.get("image_path") if is_missing(image) else image, root=root),
        rating=rating,
        origin=origin,
    )


def pairs_of_ratings(images: Iterable[RatedImage]) -> tuple[list[PreferencePair], int]:
    """All pairs of images of one prompt whose ratings differ.

    The higher rating is chosen, the gap is the margin, and ties, which state no preference, are dropped. The `rank`
    column of the data is not used: it ranks the images as a whole and not by dimension.

    Args:
        images: rated images of any prompts, in any order.

    Returns:
        The pairs, prompt after prompt, and the number of ties dropped.

    Example:
        >>> image = ImageSource(Path("a.png"))
        >>> rated = [RatedImage(prompt_id="1", prompt="a cat", image=image, rating=r) for r in (5.0, 3.0, 3.0)]
        >>> pairs, num_ties = pairs_of_ratings(rated)
        >>> [pair.margin for pair in pairs], num_ties
        ([2.0, 2.0], 1)
    """
    groups: dict[tuple[str, str], list[RatedImage]] = {}
    for image in images:
        groups.setdefault((image.prompt_id, image.prompt), []).append(image)
    couples = [couple for group in groups.values() for couple in combinations(group, 2)]
    pairs = [_pair(*couple) for couple in couples if couple[0].rating != couple[1].rating]
    return pairs, len(couples) - len(pairs)


def _pair(first: RatedImage, second: RatedImage) -> PreferencePair:
    chosen, rejected = (first, second) if first.rating > second.rating else (second, first)
    return PreferencePair(
        prompt=chosen.prompt,
        chosen=chosen.image,
        rejected=rejected.image,
        margin=chosen.rating - rejected.rating,
        origin=f"{chosen.origin} over {rejected.origin}",
    )
