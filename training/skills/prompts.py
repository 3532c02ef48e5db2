"""Prompts that teach a skill: by rules, by the grammar of the shapes world, or by a language model."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fk_reward.durable_files import write_whole
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, JudgeEngine, Messages, Sampling
from fk_reward.shapes import train_prompts
from fk_reward.training.skills.near_duplicates import MAX_SIMILARITY, DistinctPrompts
from fk_reward.training.skills.templates import Templates
from fk_reward.value_checks import whole_number

_NUMBERING = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*")
_CUT_OFF = "cut off"
_TOKENS_PER_PROMPT = 96

NUM_EXAMPLES = 3
"""Prompts that a language model is shown; SELMA shows three."""


def prompts_by_rules(
    templates: Templates, num_prompts: int | None = None, *, max_similarity: float = 1.0, seed: int = 0
) -> DistinctPrompts:
    """Prompts by filling templates, in a random order.

    Args:
        templates: lists and sentences.
        num_prompts: so many, or fewer where there are no more; None for all.
        max_similarity: largest ROUGE-L of two of them. By default only equal ones are dropped: what templates make is
            alike by design, and "two cats" and "three cats" are what teaches to count.
        seed: of the order.
    """
    return _first(templates.draw(seed), num_prompts, DistinctPrompts(max_similarity))


def prompts_of_shapes(task: str, num_prompts: int | None = None, *, seed: int = 0) -> DistinctPrompts:
    """Prompts of a task of the shapes world, none of which is held out.

    Args:
        task: one of `fk_reward.shapes.TASKS`.
        num_prompts: so many, or fewer where there are no more; None for all.
        seed: of the order.

    Example:
        >>> len(prompts_of_shapes("counting", 5).prompts)
        5
    """
    texts = [prompt.text for prompt in train_prompts(task)]
    random.Random(seed).shuffle(texts)  # noqa: S311 (no secret)
    return _first(texts, num_prompts, DistinctPrompts(1.0))


@dataclass(frozen=True, kw_only=True)
class PromptWriter:
    """A language model that writes prompts of a skill from a description and examples, as SELMA's does.

    Each request shows three examples: the given ones first, later a random choice of the given and the written ones.
    Answers are lists with one prompt a line.

    Attributes:
        engine: the model, such as an `OpenAIEngine`; it gets no image.
        description: of the skill, in a sentence.
        examples: prompts that show it, at least one.
        max_similarity: largest ROUGE-L with an example or an earlier prompt.
        per_request: prompts that one request asks for.
        temperature: of the answers, positive: at 0 equal requests have equal answers.
        num_fruitless: requests in a row without a new prompt, after which it gives up.
        seed: of the choice of examples and of the answers.

    Raises:
        ValueError: for a value out of range, or without a description or an example.
    """

    engine: JudgeEngine
    description: str
    examples: Sequence[str]
    max_similarity: float = MAX_SIMILARITY
    per_request: int = 20
    temperature: float = 1.0
    num_fruitless: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number("per_request", self.per_request, minimum=1)
        whole_number("num_fruitless", self.num_fruitless, minimum=1)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
        if not self.description.strip() or not self.examples:
            raise ValueError("The model needs a description of the skill and at least one example.")
        DistinctPrompts(self.max_similarity)  # raises now

    def write(self, num_prompts: int) -> DistinctPrompts:
        """Ask until there are enough prompts.

        Raises:
            JudgeEndpointError: when the endpoint gives no answer.
            ValueError: when the model refuses, or repeats itself.
        """
        whole_number("num_prompts", num_prompts, minimum=1)
        known, written = DistinctPrompts(self.max_similarity), DistinctPrompts(self.max_similarity)
        known.extend(self.examples)
        choice, fruitless, request = random.Random(self.seed), 0, 0  # noqa: S311 (no secret)
        while len(written.prompts) < num_prompts:
            pool = [*self.examples, *written.prompts]
            shown = pool[:NUM_EXAMPLES] if request == 0 else choice.sample(pool, min(NUM_EXAMPLES, len(pool)))
            before = len(written.prompts)
            for prompt in self._ask(shown, seed=self.seed + request)[: num_prompts - before]:
                if known.add(prompt):
                    written.prompts.append(prompt)
            request, fruitless = request + 1, 0 if len(written.prompts) > before else fruitless + 1
            if fruitless == self.num_fruitless:
                raise ValueError(
                    f"{self.engine.name} repeats itself: {len(written.prompts)} of {num_prompts} prompts after "
                    f"{request} requests. Ask for fewer, describe more, or raise max_similarity."
                )
        written.num_dropped = known.num_dropped
        return written

    def _ask(self, shown: Sequence[str], *, seed: int) -> list[str]:
        sampling = Sampling(
            max_new_tokens=_TOKENS_PER_PROMPT * self.per_request, temperature=self.temperature, seed=seed
        )
        (answer,) = self.engine.generate([()], [self._messages(shown)], sampling=sampling)
        if isinstance(answer, FlawedAnswer) and _CUT_OFF not in answer.flaw:
            raise ValueError(f"{self.engine.name} wrote no prompts: {answer.flaw} ({str(answer)[:200]!r}).")
        lines = answer.splitlines()
        return prompts_in("\n".join(lines[:-1] if isinstance(answer, FlawedAnswer) else lines))

    def _messages(self, shown: Sequence[str]) -> Messages:
        examples = "\n".join(f"- {prompt}" for prompt in shown)
        text = (
            f"Text-to-image prompts are wanted that practise one skill: {self.description.strip()}\n\nExamples:\n"
            f"{examples}\n\nWrite {self.per_request} new prompts for the same skill. Let them differ from the examples "
            "and from one another in subject, setting and wording. One prompt a line, nothing else."
        )
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def prompts_in(answer: str) -> list[str]:
    r"""The prompts of an answer: its lines without numbers, dashes and quotation marks; lines that end in ":" are none.

    Example:
        >>> prompts_in('Here they are:\n1. "Two cats."\n- three dogs')
        ['Two cats.', 'three dogs']
    """
    lines = (_NUMBERING.sub("", line).strip().strip('"“”').strip() for line in answer.splitlines())
    return [line for line in lines if re.search(r"[a-z0-9]", line.lower()) and not line.endswith(":")]


def write_prompts(path: str | os.PathLike[str], prompts: Iterable[str]) -> Path:
    """Write prompts as a text file with one a line."""
    return write_whole(path, "".join(f"{' '.join(prompt.split())}\n" for prompt in prompts))


def read_prompt_lines(path: str | os.PathLike[str]) -> list[str]:
    """Read a text file with one prompt a line; empty lines do not count.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it holds no prompt, or is not UTF-8; it names the file.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not a text file in UTF-8: {error}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{os.fspath(path)} holds no prompt.")
    return prompts


def _first(texts: Iterable[str], num_prompts: int | None, distinct: DistinctPrompts) -> DistinctPrompts:
    if num_prompts is not None:
        whole_number("num_prompts", num_prompts, minimum=1)
    for text in texts:
        if num_prompts is not None and len(distinct.prompts) == num_prompts:
            break
        distinct.add(text)
    return distinct
