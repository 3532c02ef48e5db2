"""Text-to-image pipelines at their full size without their files: random weights, a tokenizer without a vocabulary.

The architecture alone decides memory and speed, so both can be counted, and measured, before anything is downloaded.
The images are noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fk_reward.models import ALIASES
from fk_reward.planning import published_models as published
from fk_reward.planning.full_size_rewards import default_dtype, seeded_on

_START, _END = "<|startoftext|>", "<|endoftext|>"
_MAX_TOKENS = 77


def clip_tokenizer(pad_token: str = _END) -> CLIPTokenizer:
    """Make a tokenizer that spells text letter by letter, with CLIP's 49408 ids, start and end the last two.

    Example:
        >>> clip_tokenizer()("cat").input_ids[0], len(clip_tokenizer())
        (49406, 49408)
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    unused = [f"unused{index}" for index in range(published.CLIP_TOKENS - 2 - len(pieces))]
    vocab = {piece: index for index, piece in enumerate([*pieces, *unused, _START, _END])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=_MAX_TOKENS, pad_token=pad_token)


@dataclass(frozen=True)
class FullSizePipeline:
    """How to make a pipeline at full size.

    Attributes:
        build: makes its modules on PyTorch's default device and in its default dtype.
        assemble: makes the pipeline of them, a scheduler and tokenizers.
        prediction_type: of the scheduler.

    Example:
        >>> sum(weight.numel() for weight in FULL_SIZE_PIPELINES["sdxl"].make().unet.parameters())
        2567463684
    """

    build: Callable[[], dict[str, nn.Module]]
    assemble: Callable[..., DiffusionPipeline]
    prediction_type: str = "epsilon"

    def make(
        self, *, device: torch.device | str = "meta", dtype: torch.dtype = torch.float16, seed: int = 0
    ) -> DiffusionPipeline:
        """Make the pipeline with random weights and DDIM, which can be steered.

        Args:
            device: "meta" makes all of it but the numbers.
            dtype: floating, of all weights.
            seed: of the weights.
        """
        with seeded_on(torch.device(device), seed), default_dtype(dtype):
            modules = {name: module.eval().requires_grad_(False) for name, module in self.build().items()}
        scheduler = DDIMScheduler(**published.NOISE_SCHEDULE, prediction_type=self.prediction_type)
        return self.assemble(scheduler=scheduler, **modules)


def _text_config(sizes: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**sizes, vocab_size=published.CLIP_TOKENS, max_position_embeddings=_MAX_TOKENS)


def _autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(**published.AUTOENCODER, **options)


def _sd_2(sample_size: int) -> dict[str, nn.Module]:
    return {
        "unet": UNet2DConditionModel(**published.SD_2_UNET, sample_size=sample_size),
        "vae": _autoencoder(sample_size=768, scaling_factor=0.18215),
        "text_encoder": CLIPTextModel(_text_config(published.SD_2_TEXT)),
    }


def _sdxl() -> dict[str, nn.Module]:
    return {
        "unet": UNet2DConditionModel(**published.SDXL_UNET),
        "vae": _autoencoder(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": CLIPTextModel(_text_config(published.CLIP_L14_TEXT)),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config(published.CLIP_BIGG_TEXT)),
    }


def _sd_pipeline(**components: Any) -> DiffusionPipeline:
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    # OpenCLIP's text towers pad with "!", the first entry of the vocabulary; OpenAI's with the end of the text.
    return StableDiffusionPipeline(tokenizer=clip_tokenizer("!"), **components, **absent)


def _sdxl_pipeline(**components: Any) -> DiffusionPipeline:
    tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer("!")}
    return StableDiffusionXLPipeline(**tokenizers, **components, add_watermarker=False)


_SD_2_1 = FullSizePipeline(lambda: _sd_2(96), _sd_pipeline, "v_prediction")
_SDXL = FullSizePipeline(_sdxl, _sdxl_pipeline)

FULL_SIZE_PIPELINES: dict[str, FullSizePipeline] = {
    "sd-2.1": _SD_2_1,
    "sd-2.1-base": FullSizePipeline(lambda: _sd_2(64), _sd_pipeline),
    "sdxl": _SDXL,
    ALIASES["sd-2.1"]: _SD_2_1,
    ALIASES["sdxl"]: _SDXL,
}
"""Name, or hub id, of a model -> how to make it at full size. `sd-2.1` draws 768 pixels, `sd-2.1-base` 512."""
