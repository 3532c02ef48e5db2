"""VQAScore's and LLaVA-score's names in the registry; importing this module loads no weights."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any

import torch

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vqascore.vqascore import QUESTION, VQAScore

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
    licence="Llama 2 Community Licence",
    source="Li et al. 2024, arXiv 2410.00905; their own model is a fine-tuned LLaVA-1.5-13B",
    weights="llava-hf/llava-1.5-7b-hf",
    memory="14 GB in float16",
)


def load_vqascore(  # noqa: PLR0913 (options of one reward)
    *,
    model: str | os.PathLike[str] = _VQASCORE_CARD.weights,
    question: str = QUESTION,
    answer: str = "Yes",
    against: str | None = None,
    system: str | None = None,
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
        question: as for `VQAScore`, as the next three.
        answer: what a good image is answered with.
        against: the opposite answer, or None.
        system: system message, or None.
        torch_dtype: as for `load_answer_model`, as the next three.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the model that `card.weights` names.

    Raises:
        OSError: when files are missing.
        ValueError: as `load_answer_model` and `VQAScore`.
    """
    from fk_reward.rewards.vqascore.loading import load_answer_model

    answer_model = load_answer_model(
        model,
        torch_dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        revision=revision,
    )
    return VQAScore(
        answer_model,
        question=question,
        answer=answer,
        against=against,
        system=system,
        batch_size=batch_size,
        card=card_of(card, model),
    )


def card_of(card: RewardCard, model: str | os.PathLike[str]) -> RewardCard:
    """The card itself for the model that it names; for any other one, without what it says of that model's files."""
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
