"""Q-Align's rating: the expectation over five words of quality at the next token of a vision-language model."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from fk_reward.rewards.answer_model import AnswerModel

LEVELS: dict[str, float] = {"excellent": 1.0, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0.0}
"""Words and weights of `q_align/evaluate/scorer.py` in `Q-Future/Q-Align`."""

ASPECTS = ("quality", "aesthetics")
"""Subjects of the official questions."""

_CARD = RewardCard(
    name="q-align",
    summary="how good the image looks by Q-Align's template on a general vision-language model; blind to the prompt",
    typical_range=(0.0, 1.0),
    differentiable=True,
    looks_at="the whole image",
    blind_to=("prompt",),
    licence="Apache-2.0",
    source="Wu et al. 2023, arXiv 2312.17090; their own model is a fine-tuned mPLUG-Owl2",
    weights="Qwen/Qwen3-VL-2B-Instruct",
    memory="4.3 GB in bfloat16",
)


def expected_level(logits: Tensor) -> Tensor:
    """Expectation of the weights in `LEVELS` under the softmax over the logits of their words.

    Args:
        logits: (B, 5), one for each word in the order of `LEVELS`.

    Returns:
        (B,) float32 in [0, 1]; times 4 plus 1 for the scale from 1 to 5.

    Raises:
        ValueError: for another shape.

    Example:
        >>> expected_level(torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [9.0, 9.0, -9.0, -9.0, -9.0]]))
        tensor([0.5000, 0.8750])

    B: number of images.
    """
    if logits.ndim != 2 or logits.shape[1] != len(LEVELS):
        raise ValueError(f"logits must have shape (B, {len(LEVELS)}), got {tuple(logits.shape)}.")
    return logits.float().softmax(dim=-1) @ logits.new_tensor(list(LEVELS.values()), dtype=torch.float32)


class QAlign(Reward):
    """Rating of an image by Q-Align's question, by a model that was not trained for it.

    Wu et al. 2023 (arXiv 2312.17090) ask "How would you rate the quality of this image?", let the answer begin with
    "The quality of the image is", and read the five words of `LEVELS` at the next position. Their model is mPLUG-Owl2
    fine-tuned on ratings, which transformers does not have. On any other model this is its own opinion in the same
    form: comparable among images, not with the published figures. The question stands before the image, as in
    `q_align/evaluate/scorer.py`. The prompts are not read.

    Args:
        model: model and processor, as `load_answer_model` gives them.
        aspect: "quality" or "aesthetics".
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: for another aspect, or when one of the five words is not one token.

    Example:
        >>> reward = QAlign(load_answer_model("Qwen/Qwen3-VL-2B-Instruct"), aspect="aesthetics")  # doctest: +SKIP
        >>> scores = reward(images, "")  # doctest: +SKIP
    """

    accepts_uint8 = True

    def __init__(
        self,
        model: AnswerModel,
        *,
        aspect: str = "quality",
        batch_size: int | None = 8,
        card: RewardCard | None = None,
    ) -> None:
        if aspect not in ASPECTS:
            raise ValueError(f"aspect must be one of {ASPECTS}, got {aspect!r}.")
        self.question = f"How would you rate the {aspect} of this image?"
        self.opening = f"The {aspect} of the image is"
        self.tokens = model.answer_tokens(list(LEVELS), question=self.question, opening=self.opening)
        self.model = model
        self.batch_size = batch_size
        self.card = dataclasses.replace(card or _CARD, differentiable=model.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Ask the same question about each image."""
        questions = [self.question] * len(prompts)
        logits = self.model(images, questions, opening=self.opening, image_first=False)
        return expected_level(logits[:, self.tokens])


def _build_q_align(  # noqa: PLR0913 (options of one reward)
    *,
    model: str | os.PathLike[str] = _CARD.weights,
    aspect: str = "quality",
    pad_to_square: bool | None = None,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    batch_size: int | None = 8,
) -> QAlign:
    from fk_reward.rewards.answer_model import load_answer_model
    from fk_reward.rewards.vqascore import card_of

    answer_model = load_answer_model(
        model,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        revision=revision,
        pad_to_square=pad_to_square,
    )
    return QAlign(answer_model, aspect=aspect, batch_size=batch_size, card=card_of(_CARD, model))


Q_ALIGN = RewardEntry(_CARD, _build_q_align)
