"""Preference data of several public formats, told apart by their keys, as checked records."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fk_reward.training.image_reward_db import RatedImage, pairs_of_ratings
from fk_reward.training.preference_data import LabelledImage, PreferencePair
from fk_reward.training.row_files import RowSource, read_rows
from fk_reward.training.row_parsing import parse_rows
from fk_reward.training.validation import RowProblem, digest_images, report_problems, sort_out

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
