"""Putting questions to a judge: cached answers first, unreadable ones asked again or raised, never replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache, answer_key
from fk_reward.rewards.vlm_judge.answers import FlawedAnswer, JudgeAnswerError
from fk_reward.rewards.vlm_judge.engine import JudgeEngine, Sampling
from fk_reward.rewards.vlm_judge.template import JudgeTemplate

RETRY_TEMPERATURE = 0.7
"""Temperature of a question that is asked again; at 0 the answer would be the same."""


@dataclass(frozen=True)
class Question:
    """One picture, or two to compare, and their prompt.

    Attributes:
        images: the pictures, RGB.
        prompt: their prompt.
        indices: places of the pictures in the caller's order.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """A score and the answer that it was read from.

    Attributes:
        score: in the range of the template.
        answer: text of the judge, with its reasons.
    """

    score: float
    answer: str


@dataclass(frozen=True, kw_only=True)
class Interview:
    """Asks an engine the question of a template.

    Attributes:
        engine: who answers.
        template: what is asked.
        judge: name in errors.
        cache: where answers that could be read are kept; None for nowhere.
        max_new_tokens: length that an answer may have.
        num_retries: how often a question whose answer could not be read is asked again, each time with another seed.
    """

    engine: JudgeEngine
    template: JudgeTemplate
    judge: str
    cache: AnswerCache | None
    max_new_tokens: int
    num_retries: int

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Put questions to the engine in one call, and those again whose answers could not be read.

        Returns:
            One verdict a question, in their order.

        Raises:
            JudgeAnswerError: for the first question without a readable answer.
            TypeError: when the engine does not return texts.
            ValueError: when it does not return one a question.
        """
        verdicts: dict[int, Verdict] = {}
        failures: list[JudgeAnswerError] = []
        for attempt in range(self.num_retries + 1):
            pending = [i for i in range(len(questions)) if i not in verdicts]
            readings = self._attempt([questions[i] for i in pending], self._sampling(attempt))
            verdicts |= {i: r for i, r in zip(pending, readings, strict=True) if isinstance(r, Verdict)}
            failures = [reading for reading in readings if isinstance(reading, JudgeAnswerError)]
            if not failures:
                break
        if failures:
            raise failures[0]
        return [verdicts[i] for i in range(len(questions))]

    def _sampling(self, attempt: int) -> Sampling:
        temperature = RETRY_TEMPERATURE if attempt else 0.0
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=temperature, seed=attempt)

    def _attempt(self, questions: Sequence[Question], sampling: Sampling) -> list[Verdict | JudgeAnswerError]:
        keys = [self._key(question, sampling) for question in questions]
        kept = [self._kept(question, key) for question, key in zip(questions, keys, strict=True)]
        fresh = [i for i, verdict in enumerate(kept) if verdict is None]
        answers = self._generate([questions[i] for i in fresh], sampling)
        readings: dict[int, Verdict | JudgeAnswerError] = {i: v for i, v in enumerate(kept) if v is not None}
        for i, answer in zip(fresh, answers, strict=True):
            readings[i] = reading = self._read(questions[i], answer)
            if self.cache is not None and isinstance(reading, Verdict):
                self.cache.put(keys[i], reading.answer, about=self._about(questions[i]))
        return [readings[i] for i in range(len(questions))]

    def _generate(self, questions: Sequence[Question], sampling: Sampling) -> Sequence[str]:
        if not questions:
            return []
        images = [question.images for question in questions]
        messages = [self.template.messages(question.prompt) for question in questions]
        answers = self.engine.generate(images, messages, sampling=sampling)
        if isinstance(answers, str) or any(not isinstance(answer, str) for answer in answers):
            raise TypeError(f"{self.engine.name}: generate must return a list of texts, got {answers!r}.")
        if len(answers) != len(questions):
            raise ValueError(f"{self.engine.name} gave {len(answers)} answers to {len(questions)} questions.")
        return answers

    def _read(self, question: Question, answer: str) -> Verdict | JudgeAnswerError:
        try:
            if isinstance(answer, FlawedAnswer):
                raise ValueError(answer.flaw)
            return Verdict(self.template.read(answer), str(answer))
        except ValueError as error:
            failure = JudgeAnswerError(
                self.judge, str(error), answer=answer, prompt=question.prompt, indices=question.indices
            )
            failure.__cause__ = error
            return failure

    def _kept(self, question: Question, key: str) -> Verdict | None:
        """The verdict on file, if there is one and today's template can read it."""
        answer = None if self.cache is None else self.cache.get(key)
        reading = None if answer is None else self._read(question, answer)
        return reading if isinstance(reading, Verdict) else None

    def _key(self, question: Question, sampling: Sampling) -> str:
        if self.cache is None:
            return ""
        messages = self.template.messages(question.prompt)
        return answer_key(
            question.images, messages, engine=self.engine.name, template=self.template.name, sampling=sampling
        )

    def _about(self, question: Question) -> dict[str, str]:
        return {"prompt": question.prompt, "template": self.template.name, "engine": self.engine.name}
