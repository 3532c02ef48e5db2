"""VQAScore: the probability of "Yes" when a vision-language model is asked whether the image shows the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard

if TYPE_CHECKING:
    from fk_reward.rewards.vqascore.answer_model import AnswerModel

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
"""Question of Lin et al. 2024 (arXiv 2404.01291)."""

_CARD = RewardCard(
    name="vqascore",
    summary="probability of the answer to a question about the image",
    typical_range=(0.0, 1.0),
    weights="given by the caller",
    memory="that of the model",
)


def answer_probability(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Probability of the first token, among all tokens if it stands alone, otherwise among those given.

    Args:
        logits: (B, V) before softmax.
        tokens: id of the answer, and none or several to weigh it against.

    Returns:
        (B,) float32 in [0, 1].

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0, 2.0]])
        >>> answer_probability(logits, [2]), answer_probability(logits, [2, 1])
        (tensor([0.6652]), tensor([0.7311]))

    B: number of images, V: size of the vocabulary.
    """
    logits = logits.float()
    if len(tokens) > 1:
        return logits[:, list(tokens)].softmax(dim=-1)[:, 0]
    return logits.softmax(dim=-1)[:, tokens[0]]


class VQAScore(Reward):
    """P(answer | image, question) of any image-text-to-text model, read from one forward pass.

    Lin et al. 2024 (arXiv 2404.01291). Only the answer's first token is read, as their code does for Qwen-VL; for
    CLIP-FlanT5 and LLaVA-1.5 it takes the geometric mean with the probability that the answer ends there. Where that is
    near 1, their number is the square root of this one and ranks pictures in the same order.

    Args:
        model: model and processor, as `load_answer_model` gives them.
        question: text with "{prompt}" in it.
        answer: what a good image is answered with; must be one token.
        against: the opposite answer; the score is then the first one's share of both. None for the plain probability.
        system: system message before the question, for chat templates that take one.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the question has no "{prompt}", or an answer is not one token.

    Example:
        >>> reward = VQAScore(load_answer_model("Qwen/Qwen3-VL-2B-Instruct"), against="No")  # doctest: +SKIP
        >>> scores = reward(images, "a red cube on a blue cube")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: AnswerModel,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        against: str | None = None,
        system: str | None = None,
        batch_size: int | None = 8,
        card: RewardCard | None = None,
    ) -> None:
        if "{prompt}" not in question:
            raise ValueError(f"The question must have {{prompt}} where the prompt goes, got {question!r}.")
        answers = [answer] if against is None else [answer, against]
        self.tokens = model.answer_tokens(answers, question=question, system=system)
        if len(set(self.tokens)) < len(answers):
            raise ValueError(f"The answers {answer!r} and {against!r} begin with the same token.")
        self.model = model
        self.question = question
        self.system = system
        self.batch_size = batch_size
        self.card = dataclasses.replace(card or _CARD, differentiable=model.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask one question about each image; shapes as in `Reward.score`."""
        self.model.refuse_control_tokens(list(dict.fromkeys(prompts)))
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        return answer_probability(self.model(images, questions, system=self.system), self.tokens)
