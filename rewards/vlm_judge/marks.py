"""Marks at given places of an answer: an answer is made to begin with some words, and the next ones are weighed.

Where an engine gives log-probabilities, a mark is the expectation over its possible values, which is continuous and
needs no text to be written; where it does not, the mark is read from the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from fk_reward.rewards.vlm_judge.engine import Messages
from fk_reward.rewards.vlm_judge.enough import Enough
from fk_reward.rewards.vlm_judge.templates import PLACEHOLDER


@runtime_checkable
class WeighingEngine(Protocol):
    """An engine that says how probable words are at the beginning of its answer."""

    name: str

    def weigh(
        self,
        images: Sequence[Sequence[Image.Image]],
        messages: Sequence[Messages],
        *,
        openings: Sequence[str],
        candidates: Sequence[str],
        ending: str = "",
    ) -> list[list[float]]:
        """Log-probabilities of what comes next in an answer.

        Args:
            images: for each conversation its images, RGB.
            messages: for each conversation its turns.
            openings: for each conversation what its answer begins with; may be empty.
            candidates: what may come next.
            ending: what follows a candidate; its beginning tells "1" from "10".

        Returns:
            One log-probability a candidate, for each conversation: of the tokens that tell it from the others.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class MarkQuestion:
    """A question about one image whose answer has one or more marks at fixed places.

    Attributes:
        text: the instructions, after the image; "{prompt}" is replaced by the prompt, other braces are left alone.
        values: how a mark may be written -> its value.
        opening: what the answer begins with, before the first mark.
        separators: what follows each mark; as many as there are marks.
        read: reads the marks from a whole answer; raises `ValueError` where they are not there.

    Raises:
        ValueError: without text, with fewer than two values, or without a mark.

    Example:
        >>> values = {"0": 0.0, "1": 1.0}
        >>> question = MarkQuestion(text="How good?", values=values, separators=("",), read=lambda answer: (0.0,))
        >>> log_probs = [math.log(0.25), math.log(0.75)]
        >>> round(question.expectation(log_probs), 3), round(question.log_odds(log_probs), 3)
        (0.75, -1.099)
    """

    text: str
    values: Mapping[str, float]
    separators: tuple[str, ...]
    read: Callable[[str], Sequence[float]]
    opening: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip() or len(self.values) < 2 or not self.separators:
            raise ValueError(
                "A question needs a text, at least two values that a mark may have, and at least one mark."
            )

    def messages(self, prompt: str) -> Messages:
        """One user turn: the image, then the text."""
        content: list[dict[str, Any]] = [{"type": "image"}]
        content.append({"type": "text", "text": self.text.replace(PLACEHOLDER, prompt)})
        return [{"role": "user", "content": content}]

    def expectation(self, log_probs: Sequence[float]) -> float:
        """Mean of the values under the candidates' probabilities, which are made to add up to 1."""
        shares = _softmax(log_probs)
        return sum(share * value for share, value in zip(shares, self.values.values(), strict=True))

    def log_odds(self, log_probs: Sequence[float]) -> float:
        """Log-odds of the first candidate against all others."""
        return log_probs[0] - _log_sum(log_probs[1:])

    def likeliest(self, log_probs: Sequence[float]) -> str:
        """The most probable candidate."""
        return max(zip(log_probs, self.values, strict=True))[1]


@dataclass(frozen=True, kw_only=True)
class MarkTemplate:
    """Questions about an image and its prompt, and the score that follows from their marks.

    Attributes:
        name: part of the reward's name.
        summary: one line for the card.
        questions: for a prompt its questions; raises `ValueError` for a prompt that it does not know.
        combine: marks of each question -> the score.
        score_range: (low, high) of the score.
        log_odds: whether the score is the log-odds of the first value of the only mark; `combine` then only serves
            answers that are read as text.
        reads_prompt: whether the questions depend on the prompt.
        licence: of the wording.
        source: where it is from.
        max_new_tokens: length that an answer may have where it is read as text.
        enough: when an answer that is read as text has all marks of its question; None to have it written to its end.
    """

    name: str
    summary: str
    questions: Callable[[str], Sequence[MarkQuestion]]
    combine: Callable[[Sequence[Sequence[float]]], float]
    score_range: tuple[float, float]
    log_odds: bool = False
    reads_prompt: bool = True
    licence: str = "not stated"
    source: str = "not stated"
    max_new_tokens: int = 512
    enough: Enough | None = None


def numbers(low: int, high: int) -> dict[str, float]:
    """Whole numbers as marks.

    Example:
        >>> numbers(0, 2)
        {'0': 0.0, '1': 1.0, '2': 2.0}
    """
    return {str(number): float(number) for number in range(low, high + 1)}


def _softmax(log_probs: Sequence[float]) -> list[float]:
    total = _log_sum(log_probs)
    return [math.exp(value - total) for value in log_probs]


def _log_sum(log_probs: Sequence[float]) -> float:
    high = max(log_probs)
    return high + math.log(sum(math.exp(value - high) for value in log_probs))
