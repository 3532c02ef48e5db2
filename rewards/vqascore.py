"""VQAScore and LLaVA-score: the probability of "Yes" when a model is asked whether the image shows the prompt."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.known_biases import CARTOONS, SAYS_YES
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel

QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
"""Question of Lin et al. 2024 (arXiv 2404.01291), that of CLIP-FlanT5 and LLaVA-1.5."""

QUESTIONS = {"paper": QUESTION, "t2v": 'Does this image show "{prompt}"?'}
"""Questions by name. "t2v": what `linzhiqiu/t2v_metrics` asks newer models (Qwen2.5-VL, Qwen3-VL)."""

_CARD = RewardCard(
    name="vqascore",
    summary="probability of the answer to a question about the image",
    typical_range=(0.0, 1.0),
    weights="given by the caller",
    memory="that of the model",
)

LLAVA_QUESTION = "Does this image match the following caption: {prompt}?\nAnswer Yes/No directly."
"""Question of LLaVA-score, Li et al. 2024 (arXiv 2410.00905), `adobe-research/llava-score`."""

LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""LLaVA's system message ("llava_v1"), which LLaVA-score puts before the question."""

_VQASCORE_CARD = RewardCard(
    name="vqascore",
    summary='probability of "Yes" when a vision-language model is asked whether the image shows the prompt',
    typical_range=(0.0, 1.0),
    differentiable=True,
    looks_at="the whole image",
    biases=(SAYS_YES,),
    licence="Apache-2.0",
    source="Lin et al. 2024, arXiv 2404.01291; their own model is CLIP-FlanT5",
    weights="Qwen/Qwen3-VL-2B-Instruct",
    memory="4.3 GB in bfloat16",
)

_LLAVA_SCORE_CARD = RewardCard(
    name="llava-score",
    summary='share of "Yes" against "No" when LLaVA-1.5 is asked whether the image matches the prompt',
    typical_range=(0.0, 1.0),
    differentiable=True,
    looks_at="the whole image, padded to a square",
    biases=(SAYS_YES, CARTOONS),
    licence="Llama 2 Community Licence",
    source="Li et al. 2024, arXiv 2410.00905; their own model is a fine-tuned LLaVA-1.5-13B",
    weights="llava-hf/llava-1.5-7b-hf",
    memory="14 GB in float16",
)


def answer_probability(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Probability of the first token: among all tokens if it is the only one, otherwise among those given.

    Args:
        logits: (B, V) before softmax.
        tokens: id of the answer, then any number of ids to compare it with.

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

    Lin et al. 2024 (arXiv 2404.01291), as their code (`linzhiqiu/t2v_metrics`) has it: for Qwen-VL and other chat
    models the probability of the answer's first token; for CLIP-FlanT5 sqrt(P("Yes") P(end | "Yes")), the geometric
    mean over the tokens of the whole answer. Their LLaVA-1.5 takes the latter, too: `whole_answer=True`.

    Args:
        model: model and processor, as `load_answer_model` gives them.
        question: text with "{prompt}" in it, or a name of `QUESTIONS`.
        answer: the answer for a good image; must be one token.
        against: the opposite answer; the score is then the first one's share of both. None for the plain probability.
        system: system message before the question, for chat templates that take one.
        whole_answer: whether P(end) counts, too; None for what the authors do with this model.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the question has no "{prompt}", an answer is not one token, or a whole answer is compared with
            `against`.

    Example:
        >>> reward = VQAScore(load_answer_model("Qwen/Qwen3-VL-2B-Instruct"), against="No")  # doctest: +SKIP
        >>> scores = reward(images, "a red cube on a blue cube")  # doctest: +SKIP
    """

    accepts_uint8 = True

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        model: AnswerModel,
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        against: str | None = None,
        system: str | None = None,
        whole_answer: bool | None = None,
        batch_size: int | None = 8,
        card: RewardCard | None = None,
    ) -> None:
        question = QUESTIONS.get(question, question)
        if whole_answer and against is not None:
            raise ValueError("whole_answer=True is for the plain probability: leave out `against`, or whole_answer.")
        if "{prompt}" not in question:
            names = ", ".join(QUESTIONS)
            raise ValueError(
                f"The question must have {{prompt}} where the prompt goes, or be one of {names}; got {question!r}."
            )
        answers = [answer] if against is None else [answer, against]
        self.tokens = model.answer_tokens(answers, question=question, system=system)
        if len(set(self.tokens)) < len(answers):
            raise ValueError(f"The answers {answer!r} and {against!r} begin with the same token.")
        if whole_answer is None:
            whole_answer = against is None and getattr(model.processor, "reads_whole_answers", False)
        self.model = model
        self.question = question
        self.answer = answer
        self.system = system
        self.whole_answer = whole_answer
        self.batch_size = batch_size
        self.card = dataclasses.replace(card or _CARD, differentiable=model.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask one question about each image."""
        self.model.refuse_control_tokens(list(dict.fromkeys(prompts)))
        # Not `str.format`: a prompt or question may contain other braces.
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        if self.whole_answer:
            terms = self.model.answer_log_probabilities(images, questions, self.answer, system=self.system)
            return terms.mean(dim=1).exp()
        return answer_probability(self.model(images, questions, system=self.system), self.tokens)


def load_vqascore(  # noqa: PLR0913 (options of one reward)
    *,
    model: str | os.PathLike[str] = _VQASCORE_CARD.weights,
    question: str = QUESTION,
    answer: str = "Yes",
    against: str | None = None,
    system: str | None = None,
    whole_answer: bool | None = None,
    pad_to_square: bool | None = None,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    batch_size: int | None = 8,
    card: RewardCard = _VQASCORE_CARD,
) -> VQAScore:
    """Load a VQAScore: what `load_reward("vqascore", ...)` calls.

    Args:
        model: hub id or folder of any image-text-to-text model, or of a CLIP-FlanT5.
        question: text with "{prompt}" in it, or "paper" or "t2v", see `QUESTIONS`.
        answer: the answer for a good image.
        against: the opposite answer, or None.
        system: system message, or None.
        whole_answer: whether P(end) counts, as for `VQAScore`.
        pad_to_square: whether images are padded to a square, as for `AnswerModel`.
        torch_dtype: floating dtype of the weights.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the model that `card.weights` names.

    Raises:
        OSError: when files are missing.
        ValueError: as `load_answer_model` and `VQAScore`.
    """
    from fk_reward.rewards.answer_model import load_answer_model

    answer_model = load_answer_model(
        model,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        revision=revision,
        pad_to_square=pad_to_square,
    )
    return VQAScore(
        answer_model,
        question=question,
        answer=answer,
        against=against,
        system=system,
        whole_answer=whole_answer,
        batch_size=batch_size,
        card=card_of(card, model),
    )


def card_of(card: RewardCard, model: str | os.PathLike[str]) -> RewardCard:
    """The card, without its facts about files and memory unless `model` is the one that it names."""
    if os.fspath(model) == card.weights:
        return card
    return dataclasses.replace(card, weights=os.fspath(model), memory="that of the model", licence="that of the model")


VQASCORE = RewardEntry(_VQASCORE_CARD, load_vqascore)
LLAVA_SCORE = RewardEntry(
    _LLAVA_SCORE_CARD,
    partial(
        load_vqascore,
        model=_LLAVA_SCORE_CARD.weights,
        question=LLAVA_QUESTION,
        against="No",
        system=LLAVA_SYSTEM,
        torch_dtype=torch.float16,
        card=_LLAVA_SCORE_CARD,
    ),
)
