"""Preference data of several public formats, told apart by their keys, as checked records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import (
    LabelledImage,
    PreferencePair,
    RowProblem,
    digest_images,
    image_problem,
    prompt_problem,
    report_problems,
    sort_out,
)
from fk_reward.training.rows import (
    Row,
    RowSource,
    finite_number,
    is_missing,
    plain_value,
    read_rows,
    short,
    truth_value,
)

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
    pairs = [_rated_pair(*couple) for couple in couples if couple[0].rating != couple[1].rating]
    return pairs, len(couples) - len(pairs)


def _rated_pair(first: RatedImage, second: RatedImage) -> PreferencePair:
    chosen, rejected = (first, second) if first.rating > second.rating else (second, first)
    return PreferencePair(
        prompt=chosen.prompt,
        chosen=chosen.image,
        rejected=rejected.image,
        margin=chosen.rating - rejected.rating,
        origin=f"{chosen.origin} over {rejected.origin}",
    )


Record: TypeAlias = "PreferencePair | LabelledImage | RatedImage"
RecordT = TypeVar("RecordT")

KINDS: dict[str, frozenset[str]] = {
    "pairs": frozenset({"chosen_path", "chosen_image", "reject_path", "rejected_image"}),
    "rated images": frozenset(RATINGS.values()),
    "labelled images": frozenset({"label", "safety_label"}),
}
"""Kind of a row -> keys of which any one tells it."""

_SAFETY = {"safe": True, "unsafe": False}


def parse_rows(
    rows: Sequence[tuple[str, Row]], *, root: Path | None = None, dimension: str | None = None
) -> tuple[list[Record], list[RowProblem]]:
    """Make a record of each row; rows of another kind than the first are problems.

    Args:
        rows: as `read_rows` gives them.
        root: folder that relative paths of images are relative to.
        dimension: rating to read of rated images.

    Raises:
        ValueError: for rated images without a dimension that they are rated for.

    Example:
        >>> records, problems = parse_rows([("a:1", {"prompt": "a cat", "path": "cat.png", "label": 1}), ("a:2", {})])
        >>> records[0].label, str(problems[0])
        (True, 'a:2: has the keys [], which are none of pairs, rated images, labelled images')
    """
    kind = next((kind for _, row in rows if (kind := _kind(row))), None)
    column = rating_column(dimension) if kind == "rated images" else ""
    return collect(rows, lambda row, origin: _parse(row, kind, column=column, root=root, origin=origin))


def collect(
    rows: Sequence[tuple[str, Row]], parse: Callable[[Mapping[str, Any], str], RecordT]
) -> tuple[list[RecordT], list[RowProblem]]:
    """Records of the rows that can be parsed, and what is wrong with the others.

    Args:
        rows: as `read_rows` gives them.
        parse: makes a record of a row and its origin; its TypeError or ValueError becomes a problem.
    """
    records: list[RecordT] = []
    problems: list[RowProblem] = []
    for origin, row in rows:
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        try:
            records.append(parse(row, origin))
        except (TypeError, ValueError) as error:
            problems.append(RowProblem(origin, str(error)))
    return records, problems


def _kind(row: Row) -> str | None:
    return (
        None if isinstance(row, RowProblem) else next((kind for kind, keys in KINDS.items() if keys & set(row)), None)
    )


def _parse(row: Mapping[str, Any], kind: str | None, *, column: str, root: Path | None, origin: str) -> Record:
    own_kind = _kind(row)
    if own_kind is None:
        raise ValueError(f"has the keys {sorted(map(str, row))}, which are none of {', '.join(KINDS)}")
    if own_kind != kind:
        raise ValueError(f"is one of {own_kind} among {kind}: give each kind its own file")
    if kind == "pairs":
        return _pair(row, root, origin)
    if kind == "labelled images":
        return _labelled(row, root, origin)
    return rated_image(row, column=column, root=root, origin=origin)


def _pair(row: Mapping[str, Any], root: Path | None, origin: str) -> PreferencePair:
    prompt, rejected_prompt = _prompts(first_of(row, "prompt", "text"))
    return PreferencePair(
        prompt=prompt,
        chosen=ImageSource.of(first_of(row, "chosen_path", "chosen_image"), root=root),
        rejected=ImageSource.of(first_of(row, "reject_path", "rejected_image"), root=root),
        rejected_prompt=None if rejected_prompt == prompt else rejected_prompt,
        margin=_margin(row.get("c_rate"), row.get("r_rate")),
        origin=origin,
    )


def _labelled(row: Mapping[str, Any], root: Path | None, origin: str) -> LabelledImage:
    prompt = first_of(row, "prompt", "text", optional=True)
    return LabelledImage(
        prompt="" if prompt is None else prompt,
        image=ImageSource.of(first_of(row, "path", "image"), root=root),
        label=_label(row.get("label"), row.get("safety_label")),
        origin=origin,
    )


def first_of(row: Mapping[str, Any], *keys: str, optional: bool = False) -> Any:
    """Value of the first of several keys that a row has, where None and NaN count as absent.

    Raises:
        ValueError: when it has none of them; if `optional`, only when the keys themselves are absent.

    Example:
        >>> first_of({"path": None, "image": "a.png"}, "path", "image")
        'a.png'
    """
    found = [row[key] for key in keys if not is_missing(row.get(key))]
    if not found and not (optional and set(keys) & set(row)):
        raise ValueError(f"lacks {' or '.join(keys)}; it has {sorted(map(str, row))}")
    return found[0] if found else None


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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPreferences:
    """What was read from one source.

    Attributes:
        items: the good records, all of one kind.
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

    The keys of the rows decide what they are; keys that are not named here are ignored:

    - pairs: `prompt` (a string, or a list of two: the chosen image's and the rejected one's), `chosen_path`,
      `reject_path`, and perhaps the ratings `c_rate`, `r_rate`, whose gap is the margin. This is the JSON of the
      official LLaVA-Reward;
    - labelled images: `prompt` (perhaps empty), `path`, `label` (0 or 1; 1 scores high). Columns of UnsafeBench work
      too: `image`, `text`, `safety_label` ("Safe" or "Unsafe");
    - rated images of ImageRewardDB: `prompt_id`, `prompt`, `image` or `image_path`, and the ratings of `RATINGS`,
      of which all pairs of one prompt are made (`pairs_of_ratings`).

    Where an image is expected there may be a path, the bytes of a file (also as the column `chosen_image`,
    `rejected_image` or `image`), or a PIL image.

    Args:
        source: a file (JSON, JSON lines, Parquet), a `datasets.Dataset` or an iterable of mappings (`read_rows`).
        image_root: folder that relative paths are relative to; None for the folder of the file, and for the working
            directory where there is no file.
        dimension: for ImageRewardDB the rating to compare; other data state one preference only and need none.
        skip_bad_rows: leave out bad rows with a warning, in place of an error.

    Returns:
        Records of one kind, in the order of the rows.

    Raises:
        FileNotFoundError: when there is no such file.
        ImportError: for Parquet without the extra `train`.
        PreferenceDataError: a ValueError, for bad rows: it tells file, row and reason of the first ten.
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
    rows = read_rows(source)
    root = Path(source).parent if image_root is None and isinstance(source, (str, Path)) else Path(image_root or "")
    records, problems = parse_rows(rows, root=root, dimension=dimension)
    digests = digest_images(records)
    good, broken = sort_out(records, digests)
    rated = [record for record in good if isinstance(record, RatedImage)]
    pairs, num_ties = pairs_of_ratings(rated)
    if rated:
        good, contradictions = sort_out(pairs, digests)
        broken += contradictions
    order = {origin: place for place, (origin, _) in enumerate(rows)}
    problems = sorted([*problems, *broken], key=lambda problem: order.get(problem.origin, len(rows)))
    report_problems(problems, len(rows), skip_bad_rows=skip_bad_rows)
    if not good:
        raise ValueError(f"No preferences are left: {num_ties} pairs tie, {len(problems)} rows are bad.")
    return LoadedPreferences(
        cast("list[PreferencePair] | list[LabelledImage]", good), len(rows), num_ties, tuple(problems)
    )
