"""What a judge is asked, and how its answer becomes a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fk_reward.rewards.vlm_judge.parsing import question_score

PLACEHOLDER = "{prompt}"
"""Where a template's text takes the prompt."""


@dataclass(frozen=True, kw_only=True)
class JudgeTemplate:
    """A question about one picture, or about two that are compared, and the reader of its answer.

    Attributes:
        name: part of the reward's name, and of the key of a cached answer.
        summary: one line for the card.
        text: the instructions, after the picture or pictures; "{prompt}" stands for the prompt, other braces for
            themselves.
        parse: reads an answer; raises `ValueError` where it does not hold a number, and never makes one up.
        score_range: (low, high) within which `parse` may lie; another value is an error. For a comparison (0, 1):
            1 prefers the first picture.
        pairwise: whether two pictures are compared.
        max_new_tokens: length that an answer may have; a longer one is cut off, and an error.
        source: paper whose form of question this is.

    Raises:
        ValueError: when name or text is empty, the range is not increasing, or that of a comparison is not (0, 1).

    Example:
        >>> def parse(answer):
        ...     return float(answer.strip().removesuffix("%"))
        >>> template = JudgeTemplate(
        ...     name="likeness", summary="likeness in percent", text="How many percent is this {prompt}?", parse=parse,
        ...     score_range=(0.0, 100.0),
        ... )
        >>> template.read(" 40%"), template.messages("a cat")[0]["content"][1]["text"]
        (40.0, 'How many percent is this a cat?')
        >>> template.read("400%")
        Traceback (most recent call last):
        ...
        ValueError: 400 is outside the range of 'likeness', 0 to 100
    """

    name: str
    summary: str
    text: str
    parse: Callable[[str], float]
    score_range: tuple[float, float]
    pairwise: bool = False
    max_new_tokens: int = 512
    source: str = "not stated"

    def __post_init__(self) -> None:
        low, high = self.score_range
        if not self.name.strip() or not self.text.strip():
            raise ValueError("A template needs a name and a text.")
        if not low < high:
            raise ValueError(f"score_range must be (low, high) with low < high, got {self.score_range}.")
        if self.pairwise and (low, high) != (0, 1):
            raise ValueError(f"A comparison has the range (0, 1), where 1 prefers the first, got {self.score_range}.")

    def messages(self, prompt: str) -> list[dict[str, Any]]:
        """One user turn in the form of chat templates: the picture, or the two with their numbers, then the text."""
        text = {"type": "text", "text": self.text.replace(PLACEHOLDER, prompt)}
        image = {"type": "image"}
        if not self.pairwise:
            return [{"role": "user", "content": [image, text]}]
        first, second = ({"type": "text", "text": f"Picture {number}:"} for number in (1, 2))
        return [{"role": "user", "content": [first, image, second, image, text]}]

    def read(self, answer: str) -> float:
        """Read an answer.

        Raises:
            ValueError: when it cannot be read or is out of range.
        """
        score = self.parse(answer)
        low, high = self.score_range
        if not low <= score <= high:
            raise ValueError(f"{score:g} is outside the range of {self.name!r}, {low:g} to {high:g}")
        return float(score)


_QUESTIONS = """\
Someone asked an image generator for this picture:
{prompt}

Look at the picture and answer each question below with a mark: 2 if it is entirely right, 1 if it is partly right, 0 if
it is wrong or absent. Answer "n/a" where the request says nothing about the matter.

%s

Reply with one JSON object that has exactly these keys, each with 0, 1, 2 or "n/a", and nothing else:
{%s}"""


def question_template(name: str, questions: Mapping[str, str], *, source: str = "not stated") -> JudgeTemplate:
    """Make a template from a list of questions, each answered by 0, 1, 2 or "n/a"; the score is the mean mark over 2.

    Args:
        name: name of the template.
        questions: a key for each question.
        source: as for `JudgeTemplate`.

    Raises:
        ValueError: when there is no question.

    Example:
        >>> template = question_template("hands", {"fingers": "Has each hand five fingers?"})
        >>> template.read('{"fingers": 1}')
        0.5
    """
    if not questions:
        raise ValueError("A list of questions needs at least one.")
    listing = "\n".join(f"- {key}: {question}" for key, question in questions.items())
    form = ", ".join(f'"{key}": ...' for key in questions)
    return JudgeTemplate(
        name=name,
        summary=f"share of points that a vision-language model gives for {', '.join(questions)}",
        text=_QUESTIONS % (listing, form),
        parse=partial(question_score, keys=tuple(questions)),
        score_range=(0.0, 1.0),
        max_new_tokens=256,
        source=source,
    )
