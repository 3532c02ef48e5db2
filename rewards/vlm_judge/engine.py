"""The protocol of engines, which answer in text; answers that are not whole, and the errors of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from fk_reward.rewards.vlm_judge.enough import Enough
from fk_reward.text import shortened

_QUOTED = 1000


class FlawedAnswer(str):
    """An answer that must not be read, because its engine knows that it was cut off, filtered or refused.

    Attributes:
        flaw: what is wrong with it.

    Example:
        >>> FlawedAnswer('{"rating": "Sa', flaw="it was cut off").flaw
        'it was cut off'
    """

    flaw: str

    def __new__(cls, text: str, *, flaw: str) -> FlawedAnswer:
        """Attach the flaw to the text."""
        answer = super().__new__(cls, text)
        answer.flaw = flaw
        return answer


class StoppedAnswer(str):
    """An answer that was ended, and closed, as soon as it said enough for its reader.

    Example:
        >>> isinstance(StoppedAnswer('{"rating": "Safe"}'), str)
        True
    """


class JudgeAnswerError(ValueError):
    """A judge's answer gives no score: it cannot be read, is out of range, cut off or a refusal.

    Attributes:
        judge: name of the judge.
        reason: what is wrong.
        answer: the complete answer; the message quotes its first 1000 characters.
        prompt: prompt of the images.
        indices: places of the images in the caller's order: one, or the two that were compared.
    """

    def __init__(self, judge: str, reason: str, *, answer: str, prompt: str, indices: Sequence[int]) -> None:
        self.judge, self.reason, self.answer, self.prompt = judge, reason, str(answer), prompt
        self.indices = tuple(indices)
        images = "image " + str(indices[0]) if len(indices) == 1 else "images " + " and ".join(map(str, indices))
        quoted = repr(self.answer[:_QUOTED]) + ("..." if len(self.answer) > _QUOTED else "")
        shown = shortened(repr(prompt), _QUOTED)
        super().__init__(f"{judge}, {images}, prompt {shown}: {reason}. The answer was {quoted}.")

    def at(self, places: Sequence[int]) -> JudgeAnswerError:
        """The same error with image i renumbered as `places[i]`."""
        indices = [places[index] for index in self.indices]
        return JudgeAnswerError(self.judge, self.reason, answer=self.answer, prompt=self.prompt, indices=indices)


class JudgeEndpointError(RuntimeError):
    """An endpoint did not answer, or answered with something that is not a chat completion."""


Messages = list[dict[str, Any]]
"""One conversation in the form of chat templates; each `{"type": "image"}` is the next image, in order."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: length at which it is cut off.
        temperature: 0 for the most likely token each time.
        seed: of the random numbers, where the temperature is positive.
        enough: when an answer says all that is needed of it; an engine may end it there, and then returns a
            `StoppedAnswer`. None for whole answers.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    enough: Enough | None = None


class JudgeEngine(Protocol):
    """A vision-language model that answers in text; a custom class needs these two members only.

    Attributes:
        name: model and settings, different for all that answer differently; part of the key of a cached answer.
    """

    name: str

    def generate(
        self, images: Sequence[Sequence[Image.Image]], messages: Sequence[Messages], *, sampling: Sampling
    ) -> Sequence[str]:
        """Answer conversations.

        Args:
            images: for each conversation its images, RGB.
            messages: for each conversation its turns.
            sampling: how to answer.

        Returns:
            One text per conversation, in their order; a `FlawedAnswer` where it is known to be incomplete, a
            `StoppedAnswer` where it was ended by `sampling.enough`.
        """
        ...
