"""The two records that a reward is trained on: a preferred row against another, and an image with a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from fk_reward.training.image_source import ImageSource
from fk_reward.training.row_values import finite_number
from fk_reward.user_text import text_problem


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
