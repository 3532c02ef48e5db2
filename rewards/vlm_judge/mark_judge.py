"""A vision-language model that gives marks at fixed places of its answers, as a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from fk_reward.rewards.base import Reward, RewardCard, SafetyFacts
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.known_biases import MARKS_DIVERGE
from fk_reward.rewards.vlm_judge.engine import FlawedAnswer, JudgeAnswerError, JudgeEngine, Sampling
from fk_reward.rewards.vlm_judge.marks import MarkQuestion, MarkTemplate, WeighingEngine

READINGS = ("logits", "text")
"""How marks are found: expectations at their places, or numbers in the text that the model writes."""


class MarkJudge(Reward):
    """Asks the questions of a template about each image and combines the marks.

    By "logits", no text is generated: the answer is made to begin as the template says, a mark is the expectation over
    its values there (for a template of one choice, the log-odds), and where further marks follow, the likeliest value
    is written before them. By "text", the model writes, and an answer without readable marks raises. Neither falls back
    to the other, since their scores are not on one scale.

    Args:
        engine: the model; for "logits" one with `weigh`, such as a `TransformersEngine`.
        template: the questions.
        reading: "logits" or "text".
        batch_size: number of images that are asked about at once; None for all of one size.
        card: facts about the model; by default one that names the engine.

    Raises:
        TypeError: for "logits" with an engine that gives none.
        ValueError: for another reading.
    """

    accepts_uint8 = True

    def __init__(
        self,
        engine: JudgeEngine | WeighingEngine,
        template: MarkTemplate,
        *,
        reading: str = "logits",
        batch_size: int | None = 8,
        card: RewardCard | None = None,
    ) -> None:
        if reading not in READINGS:
            raise ValueError(f"reading must be one of {READINGS}, got {reading!r}.")
        if reading == "logits" and not isinstance(engine, WeighingEngine):
            raise TypeError(
                f"The engine {engine.name!r} gives no probabilities of words (it has no method `weigh`): use a local "
                'model, or reading="text".'
            )
        self.engine = engine
        self.template = template
        self.reading = reading
        self.batch_size = batch_size
        self.card = card or mark_card(template, weights=engine.name, reading=reading)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask about each image.

        Raises:
            JudgeAnswerError: a ValueError, for a text without readable marks.
            ValueError: for a prompt that the template has no questions for.
        """
        pil_images = to_pil(images)
        questions = [self.template.questions(prompt) for prompt in prompts]
        asked = [(image, prompt, question) for image, prompt, question in _flat(pil_images, prompts, questions)]
        marks = self._weighed(asked) if self.reading == "logits" else self._written(asked)
        scores, start = [], 0
        for group in questions:
            own = marks[start : start + len(group)]
            start += len(group)
            scores.append(own[0][0] if self._by_log_odds else self.template.combine(own))
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    @property
    def _by_log_odds(self) -> bool:
        return self.template.log_odds and self.reading == "logits"

    def _weighed(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Marks of each question: questions of one form go to the engine together, mark by mark."""
        marks: list[list[float]] = [[] for _ in asked]
        forms: dict[tuple[object, ...], list[int]] = {}
        for place, (_, _, question) in enumerate(asked):
            forms.setdefault((question.opening, question.separators, tuple(question.values)), []).append(place)
        for places in forms.values():
            self._weigh_alike(asked, places, marks)
        return marks

    def _weigh_alike(self, asked: Sequence[Asked], places: Sequence[int], marks: list[list[float]]) -> None:
        form = asked[places[0]][2]
        openings = [form.opening] * len(places)
        for separator in form.separators:
            found = self.engine.weigh(  # type: ignore[union-attr]  # checked when the judge was made
                [[asked[place][0]] for place in places],
                [asked[place][2].messages(asked[place][1]) for place in places],
                openings=openings,
                candidates=list(form.values),
                ending=separator,
            )
            for index, (place, log_probs) in enumerate(zip(places, found, strict=True)):
                question = asked[place][2]
                mark = question.log_odds(log_probs) if self._by_log_odds else question.expectation(log_probs)
                marks[place].append(mark)
                openings[index] += question.likeliest(log_probs) + separator

    def _written(self, asked: Sequence[Asked]) -> list[list[float]]:
        sampling = Sampling(max_new_tokens=self.template.max_new_tokens, enough=self.template.enough)
        messages = [question.messages(prompt) for _, prompt, question in asked]
        answers = self.engine.generate([[image] for image, _, _ in asked], messages, sampling=sampling)  # type: ignore[union-attr]
        return [
            self._read(answer, prompt, question, index)
            for index, (answer, (_, prompt, question)) in enumerate(zip(answers, asked, strict=True))
        ]

    def _read(self, answer: str, prompt: str, question: MarkQuestion, index: int) -> list[float]:
        try:
            if isinstance(answer, FlawedAnswer):
                raise ValueError(answer.flaw)
            return list(question.read(answer))
        except ValueError as error:
            raise JudgeAnswerError(
                self.card.name, str(error), answer=answer, prompt=prompt, indices=(index,)
            ) from error

    def _held_modules(self) -> Iterator[nn.Module]:
        return (value for value in getattr(self.engine, "__dict__", {}).values() if isinstance(value, nn.Module))


Asked = tuple[Image.Image, str, MarkQuestion]
"""An image, its prompt and a question about it."""


def _flat(
    images: Sequence[Image.Image], prompts: Sequence[str], questions: Sequence[Sequence[MarkQuestion]]
) -> Iterator[Asked]:
    for image, prompt, group in zip(images, prompts, questions, strict=True):
        for question in group:
            yield image, prompt, question


def mark_card(template: MarkTemplate, *, weights: str, reading: str = "logits", name: str | None = None) -> RewardCard:
    """The card of a template asked of a model.

    Args:
        template: the questions.
        weights: hub id of the model, or any text that names it.
        reading: as for `MarkJudge`; the log-odds of a choice have another range than its text.
        name: of the reward; "vlm-judge-" and the template's by default.

    Example:
        >>> from fk_reward.rewards.vlm_judge.marks import MarkTemplate
        >>> template = MarkTemplate(name="a", summary="b", questions=lambda p: (), combine=sum, score_range=(0, 1))
        >>> mark_card(template, weights="a model").name
        'vlm-judge-a'
    """
    by_log_odds = template.log_odds and reading == "logits"
    return RewardCard(
        name=name or f"vlm-judge-{template.name}",
        summary=template.summary,
        typical_range=(-10.0, 10.0) if by_log_odds else template.score_range,
        looks_at="the whole image",
        blind_to=() if template.reads_prompt else ("prompt", "quality"),
        biases=() if template.log_odds else (MARKS_DIVERGE,),
        # a rating, whose log-odds are those of "Safe"; its text is 1 or 0
        safety=SafetyFacts(safe_above=0.0 if by_log_odds else 0.5) if template.log_odds else None,
        licence=f"that of the model; wording: {template.licence}",
        source=template.source,
        weights=weights,
        memory="that of the model",
    )
