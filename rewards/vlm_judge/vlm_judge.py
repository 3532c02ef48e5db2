"""A vision-language model that says in words what it thinks of a picture, as a reward."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.inputs import ImageGroup, Images, in_order, pictures_of, prompt_list
from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.answers import JudgeAnswerError
from fk_reward.rewards.vlm_judge.cards import judge_card
from fk_reward.rewards.vlm_judge.engine import JudgeEngine
from fk_reward.rewards.vlm_judge.interview import Interview, Question, Verdict
from fk_reward.rewards.vlm_judge.template import JudgeTemplate
from fk_reward.rewards.vlm_judge.templates import find_template


class VLMJudge(Reward):
    """Asks about one picture at a time and reads the score from the answer; `PreferenceJudge` compares.

    The score is always one that the answer states. An answer that cannot be read, is out of range, cut off or a refusal
    raises, at once or after further tries; there is no default. Not differentiable: pictures are handed over in 8 bits.

    Args:
        engine: who answers: a `TransformersEngine`, an `OpenAIEngine` or any object with `name` and `generate`.
        template: what is asked: a `JudgeTemplate` or the name of one in `TEMPLATES`.
        cache: folder or `AnswerCache` where answers that could be read are kept; None for nowhere.
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
        """Ask about each image; shapes as in `Reward.score`.

        Raises:
            JudgeAnswerError: a ValueError, for an answer that gives no score; it quotes it and names image and prompt.
            JudgeEndpointError: when an endpoint gives no answer.
        """
        verdicts = self._interview.ask(_questions(images, prompts))
        return torch.tensor([verdict.score for verdict in verdicts], device=images.device)

    def verdicts(self, images: Images, prompts: str | Sequence[str]) -> list[Verdict]:
        """Ask about each image as a call does, and give the answers, too.

        Args:
            images: B images, as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            B verdicts, each with `score` and `answer`.

        Raises:
            JudgeAnswerError: as `score`.
        """
        pictures = in_order(images)
        return self._ask(_questions(pictures, prompt_list(prompts, len(pictures))))

    def _ask(self, questions: Sequence[Question]) -> list[Verdict]:
        size = self._checked_batch_size() or len(questions)
        batches = (questions[i : i + size] for i in range(0, len(questions), size))
        return [verdict for batch in batches for verdict in self._interview.ask(batch)]

    def _score_batch(self, batch: ImageGroup, prompts: list[str]) -> Tensor:
        try:
            return super()._score_batch(batch, prompts)
        except JudgeAnswerError as error:
            raise error.at(batch.indices) from error.__cause__

    def _held_modules(self) -> Iterator[nn.Module]:
        return (value for value in getattr(self.engine, "__dict__", {}).values() if isinstance(value, nn.Module))


def _questions(images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> list[Question]:
    pairs = enumerate(zip(pictures_of(images), prompts, strict=True))
    return [Question((picture,), prompt, indices=(i,)) for i, (picture, prompt) in pairs]


def _checked_template(template: str | JudgeTemplate, *, pairwise: bool) -> JudgeTemplate:
    found = find_template(template)
    if found.pairwise != pairwise:
        fitting = "PreferenceJudge" if found.pairwise else "VLMJudge"
        raise ValueError(f"Template {found.name!r} is for a {fitting}.")
    return found
