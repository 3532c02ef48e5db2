"""Every row and image is checked before training starts, and all that is wrong is told at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.preference_data import PreferenceRecord

logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=PreferenceRecord)

NUM_SHOWN = 10
"""Problems that a message tells in full."""


@dataclass(frozen=True)
class RowProblem:
    """Why a row cannot be used.

    Attributes:
        origin: the row, "file:row".
        reason: what is wrong with it.
    """

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


class PreferenceDataError(ValueError):
    """Rows that cannot be used.

    Attributes:
        problems: all of them; the message shows the first ten.
    """

    def __init__(self, problems: Sequence[RowProblem], num_rows: int) -> None:
        self.problems = tuple(problems)
        remedy = "Mend them, or leave them out with skip_bad_rows (--skip-bad-rows)."
        super().__init__(f"{problem_list(problems, num_rows)}\n{remedy}")


def problem_list(problems: Sequence[RowProblem], num_rows: int) -> str:
    """The first problems and how many there are.

    Example:
        >>> print(problem_list([RowProblem("pairs.json:7", "the prompt is empty")], 30))
        1 of 30 rows cannot be used:
          pairs.json:7: the prompt is empty
    """
    lines = [f"{len(problems)} of {num_rows} rows cannot be used:", *(f"  {item}" for item in problems[:NUM_SHOWN])]
    if len(problems) > NUM_SHOWN:
        lines.append(f"  ... and {len(problems) - NUM_SHOWN} more.")
    return "\n".join(lines)


def validate_preferences(items: Sequence[RecordT], *, skip_bad_rows: bool = False) -> list[RecordT]:
    """Check records and decode each of their images once.

    A row is bad when an image is absent, truncated or unreadable; when a prompt is empty (a labelled image may have
    none); when a field has the wrong type; when a margin is negative or not finite; and when a pair compares two
    equal pictures under the same prompt. `read_preferences` has done this; call it for records made by hand.

    Args:
        items: pairs or labelled images.
        skip_bad_rows: leave bad rows out, with a logged warning that tells and counts them, in place of an error.

    Returns:
        The good ones, in order.

    Raises:
        PreferenceDataError: a ValueError, for bad rows; with `skip_bad_rows` only when nothing is left.

    Example:
        >>> from pathlib import Path
        >>> from fk_reward.training.preference_data import LabelledImage
        >>> absent = LabelledImage(prompt="", image=ImageSource(Path("no.png")), label=True, origin="labels.json:1")
        >>> validate_preferences([absent])
        Traceback (most recent call last):
        fk_reward.training.validation.PreferenceDataError: 1 of 1 rows cannot be used:
          labels.json:1: no such image file: no.png
        Mend them, or leave them out with skip_bad_rows (--skip-bad-rows).
    """
    good, problems = sort_out(items, digest_images(items))
    report_problems(problems, len(items), skip_bad_rows=skip_bad_rows)
    return good


def digest_images(items: Iterable[PreferenceRecord]) -> dict[object, str | UnreadableImageError]:
    """Decode every image once, in threads.

    Returns:
        For each key of an image the digest of its pixels, or why it cannot be read.
    """
    images = {image.key: image for item in items for image in item.images if isinstance(image, ImageSource)}
    with ThreadPoolExecutor() as pool:
        return dict(zip(images, pool.map(_digest, images.values()), strict=True))


def sort_out(
    items: Iterable[RecordT], digests: Mapping[object, str | UnreadableImageError]
) -> tuple[list[RecordT], list[RowProblem]]:
    """Split records into good ones and problems.

    Args:
        items: the records.
        digests: what `digest_images` found of their images.
    """
    good, problems = [], []
    for number, item in enumerate(items, start=1):
        reason = item.problem() or _image_reason(item, digests)
        if reason is None:
            good.append(item)
        else:
            problems.append(RowProblem(item.origin or f"row {number}", reason))
    return good, problems


def report_problems(problems: Sequence[RowProblem], num_rows: int, *, skip_bad_rows: bool) -> None:
    """Stop at bad rows; warn of them instead where they are to be skipped and good ones remain.

    Raises:
        PreferenceDataError: see above.
    """
    if not problems:
        return
    if not skip_bad_rows or len(problems) >= num_rows:
        raise PreferenceDataError(problems, num_rows)
    logger.warning("Skipped rows: %s", problem_list(problems, num_rows))


def _digest(image: ImageSource) -> str | UnreadableImageError:
    try:
        return image.digest()
    except UnreadableImageError as error:
        return error


def _image_reason(item: PreferenceRecord, digests: Mapping[object, str | UnreadableImageError]) -> str | None:
    found = [digests[image.key] for image in item.images]
    unreadable = [str(digest) for digest in found if isinstance(digest, UnreadableImageError)]
    if unreadable:
        return unreadable[0]
    rows = list(zip(found, item.prompts, strict=True))
    if len(set(rows)) < len(rows):
        return f"chosen and rejected are the same picture with the same prompt: {', '.join(map(str, item.images))}"
    return None
