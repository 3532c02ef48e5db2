"""ImageReward: human preference learnt on top of BLIP."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.blip import PromptTokens, with_blip_tokens
from fk_reward.rewards.imagereward_model import (
    CONFIG_FILE,
    ImageRewardConfig,
    ImageRewardModel,
    find_files,
    read_model,
    write_model,
)
from fk_reward.rewards.known_biases import ARTEFACTS
from fk_reward.rewards.noise_bands import BandedReward, NoiseBand, band_card, band_folders, read_band, require_disjoint
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import TorchvisionPreprocessing
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from transformers import BertTokenizer

_CARD = RewardCard(
    name="imagereward",
    summary="ImageReward: human preference, by BLIP ViT-L",
    typical_range=(-2.0, 2.0),  # two standard deviations about the mean: its authors standardised the score
    spread=0.47,
    spread_source="mean of 100 prompts with 200 finished images each: 0.476 on SDXL, 0.475 on FLUX.1-dev, by the "
    "scores that github.com/TerrysLearning/TTSnap publishes",
    differentiable=True,
    max_prompt_tokens=35,
    looks_at="the central square",
    blind_to=("edges",),
    biases=(ARTEFACTS,),
    licence="Apache-2.0",
    source="Xu et al. 2023, arXiv 2304.05977; github.com/THUDM/ImageReward",
    weights="zai-org/ImageReward",
    memory="1.8 GB in float32, 0.9 GB in float16",
)

_OTHER_CARD = dataclasses.replace(
    _CARD,
    spread=None,
    spread_source=RewardCard.spread_source,
    licence="that of the weights",
    weights="given by the caller",
    memory="that of the model",
)

_SHAPES_CARD = dataclasses.replace(
    _CARD,
    name="shapes-imagereward",
    summary="ImageReward in small, trained on preferences between 64x64 images of coloured shapes",
    spread=0.79,
    spread_source="among eight finished images of a held-out prompt: examples/shapes/check_predictions.py early",
    max_prompt_tokens=16,
    source="trained by the scripts in examples/shapes",
    weights="in the package",
    memory="5.6 MB in float32",
)


class ImageReward(Reward):
    """Score of human preference for an image given its prompt; standardised by its authors to mean 0 and deviation 1.

    Differentiable with respect to the images; the weights are frozen.

    Args:
        model: the network; put into evaluation mode and frozen, in place.
        tokenizer: that of BERT, with as many tokens as the text encoder has embeddings.
        config: standardisation and length of the prompts.
        batch_size: number of images scored at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the tokenizer is of another model, or `config.max_tokens` is more than it has positions.

    Example:
        >>> reward = ImageReward.from_pretrained("ImageReward.pt", tokenizer="bert-base-uncased")  # doctest: +SKIP
        >>> scores = reward(images, "a photo of a cat")  # doctest: +SKIP
    """

    half_dtype = torch.float16

    def __init__(
        self,
        model: ImageRewardModel,
        tokenizer: BertTokenizer,
        *,
        config: ImageRewardConfig,
        batch_size: int | None = None,
        card: RewardCard | None = None,
    ) -> None:
        _check_text(model, tokenizer, config.max_tokens)
        self.model = model.eval().requires_grad_(False)
        self.config = config
        self.batch_size = batch_size
        self.card = dataclasses.replace(card or _OTHER_CARD, max_prompt_tokens=config.max_tokens)
        self.prompts = PromptTokens(tokenizer, max_tokens=config.max_tokens, name=self.card.name)
        self.preprocessing = TorchvisionPreprocessing.of_clip(model.sizes.image_size)
        self.accepts_uint8 = self.preprocessing.accepts_uint8

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str] = _CARD.weights,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        head_size: int | None = None,
        torch_dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        revision: str = "main",
        card: RewardCard | None = None,
    ) -> ImageReward:
        """Load `ImageReward.pt`, or a folder that `save_pretrained` wrote. Sizes are read from the tensors.

        Args:
            weights: the file, a folder that holds it, or a hub id.
            tokenizer: folder or hub id of BERT's tokenizer; by default `google-bert/bert-base-uncased`, or the one in
                the folder. BLIP's two special tokens are added where they are absent.
            head_size: width of the attention heads, which cannot be read from the tensors; by default 64, as in every
                BLIP, or that of the folder.
            torch_dtype: dtype of the weights, the head's is float32; None for float32, which becomes float16 on a CUDA
                device.
            batch_size: as for the class.
            revision: branch, tag or commit of the hub repository of the weights.
            card: facts about the weights; by default a card that names them.

        Raises:
            FileNotFoundError: when files are missing.
            ValueError: when the tensors are not exactly those of an ImageReward, or the tokenizer is of another model.
        """
        from transformers import BertTokenizer

        files = find_files(weights, revision=revision)
        config = files.config if head_size is None else dataclasses.replace(files.config, head_size=head_size)
        reward = cls(
            read_model(files.tensors, head_size=config.head_size, dtype=torch_dtype or torch.float32),
            with_blip_tokens(BertTokenizer.from_pretrained(tokenizer or files.tokenizer)),
            config=config,
            batch_size=batch_size,
            card=card or _card_of(weights),
        )
        return in_loaded_dtype(reward, torch_dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `from_pretrained` reads: tensors in their present dtype, configuration and tokenizer."""
        write_model(Path(folder), self.model, self.config)
        self.prompts.tokenizer.save_pretrained(folder)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score each image with its prompt in one pass of both towers."""
        tokens = self.prompts.on(images.device, prompts)
        raw = self.model(self.preprocessing(images), tokens["input_ids"], tokens["attention_mask"])
        return (raw - self.config.mean) / self.config.std


def _card_of(weights: str | os.PathLike[str]) -> RewardCard:
    return _CARD if weights == _CARD.weights else dataclasses.replace(_OTHER_CARD, weights=str(weights))


def _check_text(model: ImageRewardModel, tokenizer: BertTokenizer, max_tokens: int) -> None:
    if len(tokenizer) != model.sizes.vocab_size:
        raise ValueError(
            f"The text encoder has {model.sizes.vocab_size} tokens, the tokenizer {len(tokenizer)}: "
            "pass tokenizer=<folder or hub id> of the one that it was trained with."
        )
    if max_tokens > model.sizes.max_positions:
        raise ValueError(f"max_tokens is {max_tokens}, but the text encoder has {model.sizes.max_positions} positions.")


def load_imagereward(  # noqa: PLR0913 (options of one reward)
    weights: str | os.PathLike[str] = _CARD.weights,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    head_size: int | None = None,
    torch_dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    revision: str = "main",
    bands: str | os.PathLike[str] | None = None,
    card: RewardCard | None = None,
) -> ImageReward | BandedReward:
    """Load an ImageReward, with other weights for bands of the noise level where there are any.

    Args:
        weights: as the next five, those of `ImageReward.from_pretrained`.
        tokenizer: see there.
        head_size: see there.
        torch_dtype: see there.
        batch_size: see there.
        revision: see there.
        bands: folder of a band, or with several of them directly below it: each an ImageReward as `save_pretrained`
            writes it, whose mean and deviation bring its scores into the unit of finished images, and its
            `noise_band.json`.
        card: see there.

    Raises:
        FileNotFoundError: when files are missing.
        ValueError: for bands that overlap, and as `ImageReward.from_pretrained`.
    """
    card = card or _card_of(weights)
    shared: dict[str, Any] = {"head_size": head_size, "torch_dtype": torch_dtype, "batch_size": batch_size}
    plain = ImageReward.from_pretrained(weights, tokenizer=tokenizer, revision=revision, card=card, **shared)
    if bands is None:
        return plain
    folders = [(read_band(folder), folder) for folder in band_folders(Path(bands), CONFIG_FILE)]
    require_disjoint([band for band, _ in folders])
    judges: dict[NoiseBand, Reward] = {
        band: ImageReward.from_pretrained(folder, card=band_card(card, band.name), **shared) for band, folder in folders
    }
    return BandedReward(plain, judges)


IMAGEREWARD = RewardEntry(_CARD, load_imagereward)
SHAPES_IMAGEREWARD = RewardEntry(
    _SHAPES_CARD,
    # Of so few weights, half precision would save nothing.
    partial(load_imagereward, "shapes-imagereward", torch_dtype=torch.float32, card=_SHAPES_CARD),
)
