"""What a reward is trained on: pairs and labelled images, and the checks that they pass before training starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from fk_reward.text import text_problem
from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.rows import RowProblem, finite_number


class PreferenceRecord(Protocol):
    """What the records have in common: prompts, images, an origin, and a check of their fields."""

    @property
    def origin(self) -> str:
        """Where it was read, "file:row"."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt for each image."""

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """One image, or the chosen and the rejected one."""

    def problem(self) -> str | None:
        """What is wrong with the fields, None where nothing is; the images are not read."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferencePair:
    """A preferred (image, prompt) and another one: two images of one prompt, or two captions of one image.

    Attributes:
        prompt: prompt of the chosen image, and of the rejected one unless that has its own.
        chosen: the preferred image.
        rejected: the other image.
        rejected_prompt: prompt of the rejected image where it differs, as in a prompt pair (one image, a right and
            a wrong caption); None for the same prompt.
        margin: gap of the two ratings, in their unit, not negative; None where nothing was rated.
        origin: where it was read, "file:row".

    Example:
        >>> from pathlib import Path
        >>> image = ImageSource(Path("a.png"))
        >>> pair = PreferencePair(prompt="a red circle", chosen=image, rejected=image, rejected_prompt="a blue circle")
        >>> pair.prompts
        ('a red circle', 'a blue circle')
    """

    prompt: str
    chosen: ImageSource
    rejected: ImageSource
    rejected_prompt: str | None = None
    margin: float | None = None
    origin: str = ""

    @property
    def prompts(self) -> tuple[str, str]:
        """Prompts of the chosen and of the rejected image."""
        return self.prompt, self.prompt if self.rejected_prompt is None else self.rejected_prompt

    @property
    def images(self) -> tuple[ImageSource, ImageSource]:
        """The chosen and the rejected image."""
        return self.chosen, self.rejected

    def problem(self) -> str | None:
        """What is wrong with the fields: a prompt that is empty or no string, no images, or a margin below 0."""
        return prompt_problem(self.prompts) or image_problem(self.images) or _margin_problem(self.margin)


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImage:
    """An image and whether it is what the reward should like.

    Attributes:
        prompt: its prompt; empty for an image that is judged without one.
        image: the image.
        label: True for what should score high ("safe"), False for what should score low.
        origin: where it was read, "file:row".
    """

    prompt: str
    image: ImageSource
    label: bool
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
        """What is wrong with the fields: a prompt that is no string, no image, or a label that is no bool."""
        wrong = prompt_problem(self.prompts, may_be_empty=True) or image_problem(self.images)
        is_bool = isinstance(self.label, (bool, np.bool_))
        return wrong or (None if is_bool else f"label must be True or False, got {self.label!r}")


PreferenceItem: TypeAlias = "PreferencePair | LabelledImage"
"""Either record."""


def prompt_problem(prompts: tuple[str, ...], *, may_be_empty: bool = False) -> str | None:
    """What is wrong with prompts, None where nothing is.

    Example:
        >>> prompt_problem(("a cat", " "))
        'the prompt is empty'
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            return f"a prompt must be a string, got {type(prompt).__name__}"
        if not prompt.strip() and not may_be_empty:
            return "the prompt is empty"
        if (problem := text_problem(prompt)) is not None:
            return f"of the prompt: {problem}"
    return None


def image_problem(images: tuple[ImageSource, ...]) -> str | None:
    """What is wrong with the types of images, None where nothing is; they are not read.

    Example:
        >>> image_problem(("a.png",))
        'an image must be an ImageSource, got str'
    """
    wrong = (type(image).__name__ for image in images if not isinstance(image, ImageSource))
    return next((f"an image must be an ImageSource, got {name}" for name in wrong), None)


def _margin_problem(margin: float | None) -> str | None:
    if margin is None:
        return None
    try:
        number = finite_number(margin, "margin")
    except (TypeError, ValueError) as error:
        return str(error)
    return f"margin must not be negative, got {margin}" if number < 0 else None


logger = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=PreferenceRecord)

NUM_SHOWN = 10
"""Problems that a message tells in full."""


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
        fk_reward.training.preference_data.PreferenceDataError: 1 of 1 rows cannot be used:
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
