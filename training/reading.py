"""Preference data of several public formats, told apart by their keys, as checked records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np

from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import (
    LabelledImage,
    PreferencePair,
    PromptedImage,
    check_items,
    digest_images,
    report_problems,
)
from fk_reward.training.rows import (
    Row,
    RowProblem,
    RowSource,
    finite_number,
    first_of,
    image_folder,
    is_missing,
    key_names,
    parse_rows,
    plain_value,
    read_rows,
    short,
    truth_value,
)

logger = logging.getLogger(__name__)

RATINGS: dict[str, str] = {
    "alignment": "image_text_alignment_rating",
    "fidelity": "fidelity_rating",
    "overall": "overall_rating",
}
"""Dimension -> column of ImageRewardDB (Xu et al. 2023, arXiv 2304.05977)."""

_SAFETY = {"safe": True, "unsafe": False}


@dataclass(frozen=True)
class LoadedPreferences:
    """The records of one source, and the counts of its rows.

    Attributes:
        items: the usable records, all of one kind.
        num_rows: rows of the source.
        num_ties: pairs of equally rated images that were dropped.
        problems: bad rows that were skipped.
    """

    items: list[PreferencePair] | list[LabelledImage]
    num_rows: int
    num_ties: int = 0
    problems: tuple[RowProblem, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence with the counts."""
        prompts = len({prompt for item in self.items for prompt in item.prompts})
        if isinstance(self.items[0], LabelledImage):
            num_true = sum(item.label for item in self.items if isinstance(item, LabelledImage))
            kind = f"labelled images ({num_true} true, {len(self.items) - num_true} false)"
        else:
            kind = f"pairs ({sum(len(set(item.prompts)) > 1 for item in self.items)} of two prompts)"
        return (
            f"{len(self.items)} {kind} with {prompts} prompts from {self.num_rows} rows; "
            f"{self.num_ties} ties dropped, {len(self.problems)} bad rows skipped"
        )


def read_preferences(
    source: RowSource,
    *,
    image_root: str | Path | None = None,
    dimension: str | None = None,
    skip_bad_rows: bool = False,
) -> list[PreferencePair] | list[LabelledImage]:
    """Read preference data, check every row and image, and log the counts.

    The keys of the rows decide the format (`FORMATS`); keys that are not named here are ignored:

    - pairs: `prompt` (a string, or a list of two: the chosen image's and the rejected one's), `chosen_path`,
      `reject_path`, and optionally the ratings `c_rate`, `r_rate`, whose gap is the margin. This is the JSON of the
      official LLaVA-Reward;
    - labelled images: `prompt` (may be empty), `path`, `label` (0 or 1; 1 scores high). Columns of UnsafeBench work
      too: `image`, `text`, `safety_label` ("Safe" or "Unsafe");
    - rated images of ImageRewardDB: `prompt_id`, `prompt`, `image` or `image_path`, and the ratings of `RATINGS`,
      whose images of one prompt are paired (`pairs_of_ratings`).

    An image may be a path, the bytes of a file (also as the column `chosen_image`, `rejected_image` or `image`), or a
    PIL image.

    Args:
        source: a file (JSON, JSON lines, Parquet), a `datasets.Dataset` or an iterable of mappings (`read_rows`).
        image_root: folder that relative paths are relative to; None for the folder of the file, and for the working
            directory without a file.
        dimension: for ImageRewardDB the rating to compare; other data state one preference only and need none.
        skip_bad_rows: drop bad rows with a warning instead of raising.

    Returns:
        Records of one kind, in the order of the rows.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: for Parquet without the extra `train`.
        PreferenceDataError: a ValueError, for bad rows: it names file, row and reason of the first ten.
        TypeError: for a source of another type.
        ValueError: for a source without rows, rated rows without a dimension, or ratings that are all equal.

    Example:
        >>> from PIL import Image
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> row = {"prompt": "a red square", "chosen_path": red, "reject_path": blue, "c_rate": 6, "r_rate": 2}
        >>> (pair,) = read_preferences([row])
        >>> pair.prompt, pair.margin
        ('a red square', 4.0)
    """
    loaded = load_preferences(source, image_root=image_root, dimension=dimension, skip_bad_rows=skip_bad_rows)
    logger.info("Read %s.", loaded.summary)
    return loaded.items


def load_preferences(
    source: RowSource,
    *,
    image_root: str | Path | None = None,
    dimension: str | None = None,
    skip_bad_rows: bool = False,
) -> LoadedPreferences:
    """As `read_preferences`, with the counts of rows, ties and skipped rows."""
    rows, root = read_rows(source), image_folder(source, image_root)
    name = next((name for _, row in rows if (name := _format_of(row))), None)
    rating = rating_column(dimension) if name == "rated images" else ""
    read, problems = parse_rows(rows, lambda row, origin: _read(row, name, RowContext(origin, root, rating)))
    digests = digest_images(read)
    good, bad = check_items(read, digests)
    num_ties = 0
    if rating:
        # Images are paired after the check, so that a broken one is one bad row and not one for each of its pairs;
        # then the pairs are checked, since two equal images may have different ratings.
        pairs, num_ties = pairs_of_ratings(cast("list[RatedImage]", good))
        good, contradictions = check_items(pairs, digests)
        bad += contradictions
    order = {origin: position for position, (origin, _) in enumerate(rows)}
    problems = sorted([*problems, *bad], key=lambda problem: order.get(problem.origin, len(rows)))
    report_problems(problems, len(rows), skip_bad_rows=skip_bad_rows)
    if not good:
        raise ValueError(f"No preferences are left: {num_ties} pairs tie, {len(problems)} rows are bad.")
    return LoadedPreferences(
        cast("list[PreferencePair] | list[LabelledImage]", good), len(rows), num_ties, tuple(problems)
    )


@dataclass(frozen=True)
class RowContext:
    """What a row does not say: its origin "file:row", the folder of its images, the column of the rating to compare."""

    origin: str
    root: Path
    rating: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class RatedImage(PromptedImage):
    """An image of a prompt with one rating, higher is better.

    Attributes:
        prompt_id: the prompt's id; images are compared within one.
        prompt: the prompt.
        image: the image.
        rating: finite number.
        origin: where it was read, "file:row".
    """

    prompt_id: str
    rating: float


def _read(row: Mapping[str, Any], name: str | None, context: RowContext) -> PreferencePair | PromptedImage:
    own = _format_of(row)
    if own is None:
        raise ValueError(f"has the keys {key_names(row)}, which fit none of {', '.join(FORMATS)}")
    if own != name:
        raise ValueError(f"is one of {own} among {name}: put each kind into its own file")
    return FORMATS[own].read(row, context)


def _format_of(row: Row) -> str | None:
    if isinstance(row, RowProblem):
        return None
    return next((name for name, row_format in FORMATS.items() if row_format.keys & set(row)), None)


def _pair(row: Mapping[str, Any], context: RowContext) -> PreferencePair:
    prompt, rejected_prompt = _prompts(first_of(row, "prompt", "text"))
    return PreferencePair(
        prompt=prompt,
        chosen=ImageSource.of(first_of(row, "chosen_path", "chosen_image"), root=context.root),
        rejected=ImageSource.of(first_of(row, "reject_path", "rejected_image"), root=context.root),
        rejected_prompt=None if rejected_prompt == prompt else rejected_prompt,  # None: an ordinary pair
        margin=_margin(row.get("c_rate"), row.get("r_rate")),
        origin=context.origin,
    )


def _prompts(prompt: Any) -> tuple[str, str]:
    """One prompt for both images, or one for each."""
    if isinstance(prompt, str):
        return str(prompt), str(prompt)
    if isinstance(prompt, (list, tuple, np.ndarray)) and len(prompt) == 2:
        first, second = map(plain_value, prompt)
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise TypeError(f"prompt must be a string or two strings, got {short(prompt)}")


def _margin(chosen: Any, rejected: Any) -> float | None:
    if chosen is None and rejected is None:
        return None
    better, worse = finite_number(chosen, "c_rate"), finite_number(rejected, "r_rate")
    if better < worse:
        raise ValueError(f"the chosen image is rated {chosen}, below the rejected one's {rejected}")
    return better - worse


def _labelled(row: Mapping[str, Any], context: RowContext) -> LabelledImage:
    prompt = first_of(row, "prompt", "text", optional=True)
    return LabelledImage(
        prompt="" if prompt is None else prompt,
        image=ImageSource.of(first_of(row, "path", "image"), root=context.root),
        label=_label(row.get("label"), row.get("safety_label")),
        origin=context.origin,
    )


def _label(label: Any, safety_label: Any) -> bool:
    """The label as a bool; where a row has a number and a word they must agree."""
    found = []
    if not is_missing(label):
        found.append(truth_value(label, "label"))
    if not is_missing(safety_label):
        word = safety_label.lower() if isinstance(safety_label, str) else ""
        if word not in _SAFETY:
            raise ValueError(f"safety_label must be Safe or Unsafe, got {short(safety_label)}")
        found.append(_SAFETY[word])
    if len(set(found)) != 1:
        raise ValueError(f"label {label!r} and safety_label {safety_label!r} " + ("differ" if found else "are empty"))
    return found[0]


def _rated(row: Mapping[str, Any], context: RowContext) -> RatedImage:
    if is_missing(row.get("prompt_id")):
        raise ValueError(f"lacks prompt_id; it has {key_names(row)}")
    rating = finite_number(row.get(context.rating), context.rating)
    image = row.get("image")
    return RatedImage(
        prompt_id=str(row["prompt_id"]),
        prompt=row.get("prompt"),  # type: ignore[arg-type] # checked by `problem`
        image=ImageSource.of(row.get("image_path") if is_missing(image) else image, root=context.root),
        rating=rating,
        origin=context.origin,
    )


@dataclass(frozen=True)
class RowFormat:
    """A format of rows.

    Attributes:
        keys: a row with any of them has this format.
        read: makes a record of a row; raises TypeError or ValueError for one that cannot be used.
    """

    keys: frozenset[str]
    read: Callable[[Mapping[str, Any], RowContext], PreferencePair | PromptedImage]


FORMATS: dict[str, RowFormat] = {
    "pairs": RowFormat(frozenset({"chosen_path", "chosen_image", "reject_path", "rejected_image"}), _pair),
    "rated images": RowFormat(frozenset(RATINGS.values()), _rated),
    "labelled images": RowFormat(frozenset({"label", "safety_label"}), _labelled),
}
"""Name -> format. The first one that fits a row is used, so the more specific keys come first."""


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


def pairs_of_ratings(images: Iterable[RatedImage]) -> tuple[list[PreferencePair], int]:
    """All pairs of images of one prompt whose ratings differ.

    The image with the higher rating is chosen, the gap is the margin, and ties, which state no preference, are dropped.
    The `rank` column of the data is not used: it ranks the images overall and not by dimension.

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
        # Both: ids of different files may collide, and images of different prompts must not be compared.
        groups.setdefault((image.prompt_id, image.prompt), []).append(image)
    couples = [couple for group in groups.values() for couple in combinations(group, 2)]
    pairs = [_rated_pair(couple) for couple in couples if couple[0].rating != couple[1].rating]
    return pairs, len(couples) - len(pairs)


def _rated_pair(couple: Sequence[RatedImage]) -> PreferencePair:
    chosen, rejected = sorted(couple, key=lambda image: -image.rating)
    return PreferencePair(
        prompt=chosen.prompt,
        chosen=chosen.image,
        rejected=rejected.image,
        margin=chosen.rating - rejected.rating,
        origin=f"{chosen.origin} over {rejected.origin}",
    )
