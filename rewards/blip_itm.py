"""BLIP's image-text matching: whether an image and a text belong together."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.blip import PromptTokens, fused_states
from fk_reward.rewards.float32_layers import float32_linear
from fk_reward.rewards.known_biases import BAG_OF_WORDS
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import load_complete

if TYPE_CHECKING:
    from transformers import BertTokenizer, BlipForImageTextRetrieval

MatchUnit = Literal["probability", "logit"]

_CARD = RewardCard(
    name="blip-itm",
    summary="probability of BLIP that the image and the prompt match",
    typical_range=(0.0, 1.0),
    differentiable=True,
    max_prompt_tokens=35,
    looks_at="the whole image, squeezed into a square",
    biases=(BAG_OF_WORDS,),
    licence="BSD-3-Clause",
    source="Li et al. 2022, arXiv 2201.12086, image-text matching; github.com/salesforce/BLIP",
    weights="Salesforce/blip-itm-base-coco",
    memory="0.9 GB in float32, 0.45 GB in float16",
)

_OTHER_CARD = dataclasses.replace(
    _CARD, licence="that of the weights", weights="given by the caller", memory="that of the model"
)

_PROCESSOR_DEFAULTS = {"do_center_crop": False, "size": {"height": 384, "width": 384}}
"""What transformers' `BlipImageProcessor` assumes and CLIP's does not."""


def match_scores(logits: Tensor, *, unit: MatchUnit = "probability") -> Tensor:
    """Turn the two outputs of the matching head into one score, in float32.

    Args:
        logits: (B, 2), of "no match" and "match".
        unit: "probability", P(match) in (0, 1), or "logit", its log-odds: the second output minus the first.

    Returns:
        (B,), larger for a better match in either unit.

    Raises:
        ValueError: for another unit.

    Example:
        >>> match_scores(torch.tensor([[1.0, 1.0], [0.0, 20.0]]))
        tensor([0.5000, 1.0000])
        >>> match_scores(torch.tensor([[1.0, 1.0], [0.0, 20.0]]), unit="logit")
        tensor([ 0., 20.])

    B: number of pairs.
    """
    _check_unit(unit)
    # Float32 before the difference: in half precision, the sigmoid of good images would round to 1.
    log_odds = logits[:, 1].float() - logits[:, 0].float()
    return log_odds.sigmoid() if unit == "probability" else log_odds


class BlipITM(Reward):
    """How likely an image and its prompt match, by BLIP.

    The default is P(match), the unit of published figures; near 0 and 1 it is flat, so that good images hardly differ.
    `unit="logit"`, its log-odds, ranks images in the same order and is nowhere flat.
    Differentiable with respect to the images; the weights are frozen.

    Args:
        model: transformers' model; put into evaluation mode and frozen, in place.
        tokenizer: its tokenizer.
        preprocessing: resizing and normalisation of its images.
        unit: "probability" or "logit".
        max_tokens: number of tokens that are read of a prompt; 35 in BLIP's own code.
        batch_size: number of images scored at once; None for all of one size.
        card: facts about the weights, in the unit of the probability.

    Raises:
        ValueError: for another unit, or when `max_tokens` is more than the text encoder has positions.

    Example:
        >>> reward = BlipITM.from_pretrained("Salesforce/blip-itm-large-coco", unit="logit")  # doctest: +SKIP
        >>> scores = reward(images, "a photo of a cat")  # doctest: +SKIP
    """

    half_dtype = torch.float16

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        tokenizer: BertTokenizer,
        *,
        preprocessing: ImagePreprocessing,
        unit: MatchUnit = "probability",
        max_tokens: int = 35,
        batch_size: int | None = None,
        card: RewardCard | None = None,
    ) -> None:
        positions = model.config.text_config.max_position_embeddings
        if max_tokens > positions:
            raise ValueError(f"max_tokens is {max_tokens}, but the text encoder has {positions} positions.")
        self.card = _fit_card(card or _OTHER_CARD, unit=unit, max_tokens=max_tokens)
        self.model = model.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.accepts_uint8 = preprocessing.accepts_uint8
        self.unit = unit
        self.batch_size = batch_size
        self.prompts = PromptTokens(tokenizer, max_tokens=max_tokens, name=self.card.name)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = _CARD.weights,
        *,
        torch_dtype: torch.dtype | None = None,
        unit: MatchUnit = "probability",
        max_tokens: int = 35,
        batch_size: int | None = None,
        revision: str = "main",
        card: RewardCard | None = None,
    ) -> BlipITM:
        """Load model, tokenizer and preprocessing from a hub repository or folder in the layout of transformers.

        Args:
            model: hub id or folder.
            torch_dtype: dtype of the weights; None for float32, which becomes float16 on a CUDA device.
            unit: as for the class.
            max_tokens: as for the class.
            batch_size: as for the class.
            revision: branch, tag or commit of the hub repository.
            card: facts about the weights; by default a card that names the model.

        Raises:
            OSError: when files are missing.
            ValueError: for a checkpoint of another architecture or without all weights, and when the image processor
                does something that `ImagePreprocessing` does not reproduce.
        """
        from transformers import BertTokenizer, BlipForImageTextRetrieval, ImageProcessingMixin

        settings, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
        reward = cls(
            load_complete(BlipForImageTextRetrieval, model, dtype=torch_dtype or torch.float32, revision=revision),
            BertTokenizer.from_pretrained(model, revision=revision),
            preprocessing=ImagePreprocessing.from_config({**_PROCESSOR_DEFAULTS, **settings}),
            unit=unit,
            max_tokens=max_tokens,
            batch_size=batch_size,
            card=card or (_CARD if model == _CARD.weights else dataclasses.replace(_OTHER_CARD, weights=str(model))),
        )
        return in_loaded_dtype(reward, torch_dtype)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Match each image with its prompt in one pass of both towers."""
        tokens = self.prompts.on(images.device, prompts)
        states = fused_states(self.model.vision_model, self.model.text_encoder, self.preprocessing(images), tokens)
        return match_scores(float32_linear(self.model.itm_head, states), unit=self.unit)


def _check_unit(unit: str) -> None:
    if unit not in get_args(MatchUnit):
        raise ValueError(f"unit must be one of {get_args(MatchUnit)}, got {unit!r}.")


def _fit_card(card: RewardCard, *, unit: MatchUnit, max_tokens: int) -> RewardCard:
    _check_unit(unit)
    card = dataclasses.replace(card, max_prompt_tokens=max_tokens)
    if unit == "probability":
        return card
    summary = "log-odds of BLIP that the image and the prompt match"
    return dataclasses.replace(card, summary=summary, typical_range=(-math.inf, math.inf), spread=None)


BLIP_ITM = RewardEntry(_CARD, BlipITM.from_pretrained)
