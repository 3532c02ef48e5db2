"""What a judge needs of a model: pictures and messages in, texts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

Messages = list[dict[str, Any]]
"""One conversation in the form of chat templates; each `{"type": "image"}` in it stands for a picture, in order."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: length at which it is cut off.
        temperature: 0 for the most likely token each time.
        seed: of the random numbers, where the temperature is positive.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class JudgeEngine(Protocol):
    """A vision-language model that answers in text; a class of one's own needs nothing but these two.

    Attributes:
        name: model and settings, different for all that answer differently; part of the key of a cached answer.
    """

    name: str

    def generate(
        self, images: Sequence[Sequence[Image.Image]], messages: Sequence[Messages], *, sampling: Sampling
    ) -> Sequence[str]:
        """Answer conversations.

        Args:
            images: for each conversation its pictures, RGB.
            messages: for each conversation its turns.
            sampling: how to answer.

        Returns:
            One text a conversation, in their order; a `FlawedAnswer` where it is known not to be a whole answer.
        """
        ...
