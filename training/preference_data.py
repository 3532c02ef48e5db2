"""Preference pairs and labelled images, and the checks that they pass before a training starts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from fk_reward.text import text_problem
from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.rows import RowProblem, finite_number

logger = logging.getLogger(__name__)

NUM_SHOWN = 10
"""Problems that an error message lists in full."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferencePair:
    """A preferred (image, prompt) and a rejected one: two images of one prompt, or two captions of one image.

    Attributes:
        prompt: prompt of the chosen image, and of the rejected one unless `rejected_prompt` is set.
        chosen: the preferred image.
        rejected: the other image.
        rejected_prompt: prompt of the rejected image where it differs, as in a prompt pair (one image, a right and
            a wrong caption); None for the same prompt.
        margin: gap of the two ratings, in their unit, not negative; None without ratings.
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
        """Why the fields cannot be used, or None: an empty prompt, a wrong type, a negative margin."""
        return prompt_problem(self.prompts) or _image_type_problem(self.images) or _margin_problem(self.margin)


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedImage:
    """An image with its prompt.

    Attributes:
        prompt: the prompt.
        image: the image.
        origin: where it was read, "file:row".
    """

    prompt: str
    image: ImageSource
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
        """Why the fields cannot be used, or None; the image is not read."""
        return prompt_problem(self.prompts) or _image_type_problem(self.images)


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImage(PromptedImage):
    """An image and whether the reward should like it.

    Attributes:
        prompt: its prompt; empty for an image that is judged without one.
        image: the image.
        label: True for what should score high ("safe"), False for what should score low.
        origin: where it was read, "file:row".
    """

    label: bool

    def problem(self) -> str | None:
        """Why the fields cannot be used, or None: a wrong type; the prompt may be empty."""
        wrong = prompt_problem(self.prompts, may_be_empty=True) or _image_type_problem(self.images)
        is_bool = isinstance(self.label, (bool, np.bool_))
        return wrong or (None if is_bool else f"label must be True or False, got {self.label!r}")


def labels_of_pairs(pairs: Iterable[PreferencePair]) -> list[LabelledImage]:
    """Turn pairs into labelled images: what was chosen is True, what was rejected False.

    So the official code trains a head of one output on pairs (`rm_trainer_general_preference.py`: the cross-entropy of
    chosen = 1 and rejected = 0). Margins are not used.

    Example:
        >>> image = ImageSource(b"...")
        >>> [item.label for item in labels_of_pairs([PreferencePair(prompt="a star", chosen=image, rejected=image)])]
        [True, False]
    """
    return [
        LabelledImage(prompt=prompt, image=image, label=label, origin=pair.origin)
        for pair in pairs
        for prompt, image, label in zip(pair.prompts, pair.images, (True, False), strict=True)
    ]


PreferenceItem: TypeAlias = PreferencePair | LabelledImage
"""A record of the training data."""

ItemT = TypeVar("ItemT", bound=PreferencePair | PromptedImage)


class PreferenceDataError(ValueError):
    """Rows that cannot be used.

    Attributes:
        problems: all of them; the message shows the first ten.
    """

    def __init__(self, problems: Sequence[RowProblem], num_rows: int) -> None:
        self.problems = tuple(problems)
        remedy = "Correct them, or leave them out with skip_bad_rows (--skip-bad-rows)."
        super().__init__(f"{_problem_list(problems, num_rows)}\n{remedy}")


def validate_preferences(items: Sequence[ItemT], *, skip_bad_rows: bool = False) -> list[ItemT]:
    """Check records and decode each of their images once.

    A row is bad when an image is absent, truncated or unreadable; when a prompt is empty (a labelled image may have
    none); when a field has the wrong type; when a margin is negative or not finite; and when a pair compares two
    equal images under the same prompt. `read_preferences` does this; call it for records made by hand.

    Args:
        items: pairs or labelled images.
        skip_bad_rows: drop bad rows, with a logged warning that lists and counts them, instead of raising.

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
        Correct them, or leave them out with skip_bad_rows (--skip-bad-rows).
    """
    good, problems = check_items(items, digest_images(items))
    report_problems(problems, len(items), skip_bad_rows=skip_bad_rows)
    return good


def digest_images(items: Iterable[PreferencePair | PromptedImage]) -> dict[object, str | UnreadableImageError]:
    """Decode every image once, in threads.

    Returns:
        For each key of an image the digest of its pixels, or why it cannot be read.
    """
    # By key: an image of many pairs is decoded once. In threads, as decoding releases the GIL.
    images = {image.key: image for item in items for image in item.images if isinstance(image, ImageSource)}
    with ThreadPoolExecutor() as pool:
        return dict(zip(images, pool.map(_digest, images.values()), strict=True))


def check_items(
    items: Iterable[ItemT], digests: Mapping[object, str | UnreadableImageError]
) -> tuple[list[ItemT], list[RowProblem]]:
    """Separate good records from bad ones.

    Args:
        items: the records.
        digests: of their images, from `digest_images`.
    """
    good, problems = [], []
    for number, item in enumerate(items, start=1):
        reason = item.problem() or _content_problem(item, digests)
        if reason is None:
            good.append(item)
        else:
            problems.append(RowProblem(item.origin or f"row {number}", reason))
    return good, problems


def report_problems(problems: Sequence[RowProblem], num_rows: int, *, skip_bad_rows: bool) -> None:
    """Raise for bad rows; with `skip_bad_rows`, log a warning instead as long as good rows remain.

    Raises:
        PreferenceDataError: for bad rows without `skip_bad_rows`, or when no other rows remain.
    """
    if not problems:
        return
    if not skip_bad_rows or len(problems) >= num_rows:
        raise PreferenceDataError(problems, num_rows)
    logger.warning("Skipped rows: %s", _problem_list(problems, num_rows))


def prompt_problem(prompts: Sequence[object], *, may_be_empty: bool = False) -> str | None:
    """Why prompts cannot be used, or None.

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


def _image_type_problem(images: Sequence[object]) -> str | None:
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


def _content_problem(
    item: PreferencePair | PromptedImage, digests: Mapping[object, str | UnreadableImageError]
) -> str | None:
    found = [digests[image.key] for image in item.images]
    unreadable = [str(digest) for digest in found if isinstance(digest, UnreadableImageError)]
    if unreadable:
        return unreadable[0]
    rows = list(zip(found, item.prompts, strict=True))
    if len(set(rows)) < len(rows):
        return f"chosen and rejected are the same image with the same prompt: {', '.join(map(str, item.images))}"
    return None


def _digest(image: ImageSource) -> str | UnreadableImageError:
    try:
        return image.digest()
    except UnreadableImageError as error:
        return error


def _problem_list(problems: Sequence[RowProblem], num_rows: int) -> str:
    lines = [f"{len(problems)} of {num_rows} rows cannot be used:", *(f"  {item}" for item in problems[:NUM_SHOWN])]
    if len(problems) > NUM_SHOWN:
        lines.append(f"  ... and {len(problems) - NUM_SHOWN} more.")
    return "\n".join(lines)
