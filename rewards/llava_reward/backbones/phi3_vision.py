"""Phi-3.5-vision as a backbone."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import ImageProcessingMixin, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from fk_reward.rewards.llava_reward.backbones.base import Backbone, BackboneInputs
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import (
    CLIP_MEAN,
    CLIP_STD,
    HDTransform,
    PhiLanguageModel,
    PhiVisionModel,
)
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens
from fk_reward.rewards.weights import load_headless

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

_TEXT_BEFORE_IMAGE = "<|user|>\n"
_IMAGE_TAG = re.compile(r"<\|image_\d+\|>")


class PhiVisionBackbone(Backbone):
    """`microsoft/Phi-3.5-vision-instruct`, run natively, in place of the hub's code, which transformers 5 cannot run.

    A row reads `<|user|>`, newline, visual tokens, newline, prompt, end-of-text: the hub's chat template up to the end
    of the prompt. The texts before and after the image are tokenised by themselves, as the official processor does, so
    that a tokenizer that opens a text with a token (the hub's `<s>`) opens both.

    Args:
        model: the model; put into evaluation mode and frozen, in place.
        tokenizer: its tokenizer.
        num_crops: budget of the HD transform; 16 is LLaVA-Reward's setting (a square image becomes 2509 tokens),
            4 makes it 757 tokens.
        mean: per channel, of the image processor.
        std: per channel, of the image processor.

    Raises:
        ValueError: when `num_crops` is not positive or the tokenizer has no end-of-text token.

    Example:
        >>> backbone = PhiVisionBackbone.from_pretrained("microsoft/Phi-3.5-vision-instruct")  # doctest: +SKIP
        >>> inputs = backbone.prepare([torch.rand(3, 1024, 1024)], ["a cat"])  # doctest: +SKIP
        >>> inputs.num_visual_tokens  # doctest: +SKIP
        [2509]
    """

    model_type = "phi3_v"
    norm_eps = 1e-5

    def __init__(
        self,
        model: PhiVisionModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        num_crops: int = 16,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        if tokenizer.eos_token is None:
            raise ValueError("The tokenizer must have an eos_token (<|endoftext|> on the hub), it has none.")
        self.model = model
        self.tokenizer = tokenizer
        self.hd_transform = HDTransform(
            num_crops=num_crops, crop_size=model.config.vision_config.image_size, mean=tuple(mean), std=tuple(std)
        )
        self.freeze()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        device_map: str | dict[str, Any] | None = None,
        quantization_config: QuantizationConfigMixin | None = None,
        revision: str = "main",
        num_crops: int = 16,
    ) -> PhiVisionBackbone:
        """Load a hub repository or folder in the layout of `microsoft/Phi-3.5-vision-instruct`; no code of it is run.

        Args:
            path: hub id or folder.
            torch_dtype: dtype of the weights; whatever the files have is converted.
            attn_implementation: attention of both towers, as transformers names them.
            device_map: placement, as transformers takes it; None for the CPU.
            quantization_config: as transformers takes it.
            revision: branch, tag or commit of the hub repository.
            num_crops: as for the class; the folder's own figure is not read.

        Raises:
            OSError: when files are missing.
            ValueError: for another model type, and when the weights are not those of the config.
        """
        processor, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
        model = load_headless(
            PhiVisionModel,
            path,
            revision=revision,
            dtype=torch_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
            key_mapping=PhiVisionModel.hub_keys,
        )
        tokenizer = _load_tokenizer(path, revision=revision)
        normalization = {"mean": processor["image_mean"], "std": processor["image_std"]}
        return cls(model, tokenizer, num_crops=num_crops, **normalization)

    @property
    def language_model(self) -> PhiLanguageModel:
        """The `Phi3Model`."""
        return self.model.language_model

    @property
    def projector(self) -> nn.Sequential:
        """Linear, GELU, Linear; reads merged features of width 4C, separators among them."""
        return self.model.vision_embed_tokens.img_projection

    @property
    def options(self) -> dict[str, Any]:
        """Budget of the HD transform."""
        return {"num_crops": self.hd_transform.num_crops}

    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Cut images into crops and tokenise prompts; arguments as `Backbone.prepare`.

        Returns:
            Inputs whose `pixel_values` are (N, 3, crop_size, crop_size), the crops of all images, and whose `extras`
            hold "grids", the rows and columns of each image.

        N: number of crops of all images.
        """
        grids = [self.hd_transform.grid(*image.shape[-2:]) for image in images]
        counts = [self.model.vision_embed_tokens.num_tokens(*grid) for grid in grids]
        rows = self._tokenize(prompts, counts)
        return BackboneInputs(
            input_ids=self._pad(input_ids for input_ids, _ in rows),
            attention_mask=self._pad(torch.ones_like(image_mask) for _, image_mask in rows),
            image_mask=self._pad(image_mask for _, image_mask in rows),
            pixel_values=self._crops(images),
            extras={"grids": grids},
        )

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """(T, 4C): all crops through the CLIP tower at once, merged 2 x 2, with the separators in their places."""
        return self.model.vision_embed_tokens(inputs.pixel_values, inputs.extras["grids"])

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """(T, D): the projector on features and separators alike, in the projector's dtype."""
        *_, bias = projector.parameters()
        return projector(features.to(bias))

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """As `Backbone.language_arguments`; padding repeats a row's last position: LongRoPE knows its length by it."""
        places = torch.arange(inputs.input_ids.shape[1], device=inputs.input_ids.device)
        return {
            "inputs_embeds": self.embed_tokens(inputs, visual_tokens),
            "attention_mask": inputs.attention_mask,
            "position_ids": torch.minimum(places, inputs.last_token[:, None]),
            "use_cache": False,
        }

    def _crops(self, images: Sequence[Tensor]) -> Tensor:
        """(N, 3, crop_size, crop_size), the crops of all images; neighbours of one size are cut together."""
        runs = itertools.groupby(images, key=lambda image: image.shape)
        return torch.cat([self.hd_transform.batch(torch.stack(list(run))).flatten(0, 1) for _, run in runs])

    def _tokenize(self, prompts: Sequence[str], counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """For each prompt and number of visual tokens the ids of its row, 0 for the visual ones, and their mask."""
        refuse_control_tokens(prompts, control_tokens(self.tokenizer))
        for prompt in prompts:  # not in the vocabulary: the official processor finds it by a pattern
            refuse_control_tokens([prompt], _IMAGE_TAG.findall(prompt))
        before = self.tokenizer(_TEXT_BEFORE_IMAGE).input_ids
        after = self.tokenizer([f"\n{prompt}{self.tokenizer.eos_token}" for prompt in prompts]).input_ids
        rows = []
        for count, ids in zip(counts, after, strict=True):
            input_ids = torch.tensor([*before, *[0] * count, *ids])
            image_mask = torch.zeros(len(input_ids), dtype=torch.bool)
            image_mask[len(before) : len(before) + count] = True
            rows.append((input_ids, image_mask))
        return rows

    def _pad(self, rows: Iterable[Tensor]) -> Tensor:
        return pad_sequence(list(rows), batch_first=True).to(self.device)


def _load_tokenizer(path: str | os.PathLike[str], *, revision: str) -> PreTrainedTokenizerFast:
    """Read tokenizer.json; whether it opens a text with `<s>` is for `add_bos_token` to say, as in transformers 4."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, revision=revision)
    settings = get_tokenizer_config(path, revision=revision)
    if "add_bos_token" in settings:
        tokenizer.add_bos_token = settings["add_bos_token"]
    return tokenizer
