"""A vision-language model that says in words what it thinks of an image, as a reward."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.inputs import ImageGroup, Images, in_order, prompt_list, to_pil
from fk_reward.rewards.known_biases import MARKS_DIVERGE, ORDER
from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache, answer_key
from fk_reward.rewards.vlm_judge.endpoint import redact_text
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, JudgeAnswerError, JudgeEngine, Sampling, StoppedAnswer
from fk_reward.rewards.vlm_judge.templates import JudgeTemplate, find_template

DEFAULT_MODEL = "Qwen/Qwen3-VL-4B-Instruct"
"""Judge of single images; fits beside SDXL on a card of 24 GB."""

REASONER = "alexgambashidze/qwen2.5vl_image_preference_reasoner"
"""Judge of comparisons."""

_KNOWN = {  # model -> licence and memory
    DEFAULT_MODEL: ("Apache-2.0", "9 GB in bfloat16"),
    REASONER: ("Apache-2.0 (Qwen2.5-VL-7B); the reasoner's is not stated", "17 GB in bfloat16"),
}

RETRY_TEMPERATURE = 0.7
"""Temperature of a question that is asked again; at 0 the answer would be the same."""


@dataclass(frozen=True)
class Question:
    """One image, or two to compare, and their prompt.

    Attributes:
        images: the images, RGB.
        prompt: their prompt.
        indices: places of the images in the caller's order.
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


class VLMJudge(Reward):
    """Asks about one image at a time and reads the score from the answer; `PreferenceJudge` compares.

    The score is always one that the answer states. An answer that cannot be read, is out of range, cut off or a refusal
    raises, at once or after further tries; there is no default. Not differentiable: the engine gets 8-bit images.

    Args:
        engine: the model: a `TransformersEngine`, an `OpenAIEngine` or any object with `name` and `generate`.
        template: the question: a `JudgeTemplate` or the name of one in `TEMPLATES`.
        cache: folder or `AnswerCache` where answers that could be read are kept; None for no cache.
        on_unparsable: "raise", or "retry" to ask again first, each time at temperature 0.7 with another seed.
        num_retries: how often to ask again; counts only with "retry".
        max_new_tokens: length that an answer may have; None for the template's own.
        batch_size: number of questions that the engine gets at once; None for all of one image size.
        card: facts about the model; by default one that names the engine.

    Raises:
        ValueError: for a setting out of range, an unknown template, or one that compares.

    Example:
        >>> class Echo:
        ...     name = "echo"
        ...
        ...     def generate(self, images, messages, *, sampling):
        ...         return ['{"alignment": 8, "quality": 2, "reason": "..."}'] * len(images)
        >>> VLMJudge(Echo())(torch.rand(2, 3, 8, 8), "a red circle")
        tensor([4., 4.])
    """

    pairwise = False

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        engine: JudgeEngine,
        template: str | JudgeTemplate = "rubric",
        *,
        cache: AnswerCache | str | os.PathLike[str] | None = None,
        on_unparsable: str = "raise",
        num_retries: int = 2,
        max_new_tokens: int | None = None,
        batch_size: int | None = 8,
        card: RewardCard | None = None,
    ) -> None:
        self.template = _checked_template(template, pairwise=self.pairwise)
        if on_unparsable not in ("raise", "retry"):
            raise ValueError(f'on_unparsable must be "raise" or "retry", got {on_unparsable!r}.')
        if num_retries < 1 or (max_new_tokens is not None and max_new_tokens < 1):
            raise ValueError(f"num_retries and max_new_tokens are at least 1, got {num_retries}, {max_new_tokens}.")
        self.engine = engine
        self.batch_size = batch_size
        self.card = card or judge_card(self.template, weights=engine.name)
        self._interview = Interview(
            engine=engine,
            template=self.template,
            judge=self.card.name,
            cache=cache if cache is None or isinstance(cache, AnswerCache) else AnswerCache(cache),
            max_new_tokens=max_new_tokens or self.template.max_new_tokens,
            num_retries=num_retries if on_unparsable == "retry" else 0,
        )

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask about each image.

        Raises:
            JudgeAnswerError: a ValueError, for an answer that gives no score; it quotes it and names image and prompt.
            JudgeEndpointError: when an endpoint gives no answer.
        """
        verdicts = self._interview.ask(_questions(images, prompts))
        return torch.tensor([verdict.score for verdict in verdicts], device=images.device)

    def verdicts(self, images: Images, prompts: str | Sequence[str]) -> list[Verdict]:
        """Ask about each image as a call does, and give the answers, too, written to their ends.

        Args:
            images: B images, as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            B verdicts, each with `score` and `answer`.

        Raises:
            JudgeAnswerError: as `score`.
        """
        images = in_order(images)
        return self._ask(_questions(images, prompt_list(prompts, len(images))), whole=True)

    def _ask(self, questions: Sequence[Question], *, whole: bool = False) -> list[Verdict]:
        size = self._checked_batch_size() or len(questions)
        batches = (questions[i : i + size] for i in range(0, len(questions), size))
        return [verdict for batch in batches for verdict in self._interview.ask(batch, whole=whole)]

    def _score_batch(self, batch: ImageGroup, prompts: list[str]) -> Tensor:
        try:
            return super()._score_batch(batch, prompts)
        except JudgeAnswerError as error:
            raise error.at(batch.indices) from error.__cause__

    def _held_modules(self) -> Iterator[nn.Module]:
        return (value for value in getattr(self.engine, "__dict__", {}).values() if isinstance(value, nn.Module))


def _questions(images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> list[Question]:
    pairs = enumerate(zip(to_pil(images), prompts, strict=True))
    return [Question((image,), prompt, indices=(i,)) for i, (image, prompt) in pairs]


def _checked_template(template: str | JudgeTemplate, *, pairwise: bool) -> JudgeTemplate:
    found = find_template(template)
    if found.pairwise != pairwise:
        fitting = "PreferenceJudge" if found.pairwise else "VLMJudge"
        raise ValueError(f"Template {found.name!r} is for a {fitting}.")
    return found


def judge_card(template: JudgeTemplate, *, weights: str) -> RewardCard:
    """The card of a template asked of a model, called `vlm-judge` for "rubric" and `vlm-judge-<name>` for others.

    Args:
        template: the question.
        weights: hub id of the model, or any text that names it.

    Example:
        >>> from fk_reward.rewards.vlm_judge.templates import SAFETY
        >>> judge_card(SAFETY, weights="a model").name
        'vlm-judge-safety'
    """
    licence, memory = _KNOWN.get(weights, ("that of the model", "that of the model"))
    return RewardCard(
        name="vlm-judge" if template.name == "rubric" else f"vlm-judge-{template.name}",
        summary=template.summary,
        typical_range=template.score_range,
        looks_at="the whole image",
        blind_to=template.blind_to,
        biases=(ORDER if template.pairwise else MARKS_DIVERGE,),
        licence=licence,
        source=template.source,
        weights=redact_text(weights),
        memory=memory,
    )


@dataclass(frozen=True, kw_only=True)
class Interview:
    """Asks an engine the question of a template.

    Attributes:
        engine: the model that answers.
        template: the question.
        judge: name in errors.
        cache: where answers that could be read are kept; None for no cache.
        max_new_tokens: length that an answer may have.
        num_retries: how often a question whose answer could not be read is asked again, each time with another seed.
    """

    engine: JudgeEngine
    template: JudgeTemplate
    judge: str
    cache: AnswerCache | None
    max_new_tokens: int
    num_retries: int

    def ask(self, questions: Sequence[Question], *, whole: bool = False) -> list[Verdict]:
        """Put questions to the engine in one call, and those again whose answers could not be read.

        Args:
            questions: what to ask.
            whole: whether answers are written to their ends, even where they say enough before.

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
            readings = self._attempt([questions[i] for i in pending], self._sampling(attempt, whole=whole))
            verdicts |= {i: r for i, r in zip(pending, readings, strict=True) if isinstance(r, Verdict)}
            failures = [reading for reading in readings if isinstance(reading, JudgeAnswerError)]
            if not failures:
                break
        if failures:
            raise failures[0]
        return [verdicts[i] for i in range(len(questions))]

    def _sampling(self, attempt: int, *, whole: bool) -> Sampling:
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=RETRY_TEMPERATURE if attempt else 0.0,
            seed=attempt,
            enough=None if whole else self.template.enough,
        )

    def _attempt(self, questions: Sequence[Question], sampling: Sampling) -> list[Verdict | JudgeAnswerError]:
        kept = [self._kept(question, sampling) for question in questions]
        fresh = [i for i, verdict in enumerate(kept) if verdict is None]
        answers = self._generate([questions[i] for i in fresh], sampling)
        readings: dict[int, Verdict | JudgeAnswerError] = {i: v for i, v in enumerate(kept) if v is not None}
        for i, answer in zip(fresh, answers, strict=True):
            readings[i] = reading = self._read(questions[i], answer)
            if self.cache is not None and isinstance(reading, Verdict):
                key = self._key(questions[i], sampling, stopped=isinstance(answer, StoppedAnswer))
                self.cache.put(key, reading.answer, about=self._about(questions[i]))
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
            failure.__cause__ = error  # returned, not raised: further tries may still give a score
            return failure

    def _kept(self, question: Question, sampling: Sampling) -> Verdict | None:
        """The cached verdict, if there is one that the template can read: a whole answer rather than a stopped one."""
        if self.cache is None:
            return None
        for stopped in (False,) if sampling.enough is None else (False, True):
            answer = self.cache.get(self._key(question, sampling, stopped=stopped))
            reading = None if answer is None else self._read(question, answer)
            if isinstance(reading, Verdict):
                return reading
        return None

    def _key(self, question: Question, sampling: Sampling, *, stopped: bool) -> str:
        return answer_key(
            question.images,
            self.template.messages(question.prompt),
            engine=self.engine.name,
            template=self.template.name,
            sampling=sampling,
            stopped=stopped,
        )

    def _about(self, question: Question) -> dict[str, str]:
        return {"prompt": question.prompt, "template": self.template.name, "engine": self.engine.name}
