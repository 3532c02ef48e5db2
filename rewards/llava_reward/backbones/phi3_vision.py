"""Phi-3.5-vision as a backbone: its preprocessing, the frozen model in four steps, and its spec.

This file is imported to read cards, so transformers and the model's classes are imported where they are needed.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.llava_reward.backbones.base import (
    CLIP_LARGE,
    CLIP_TINY,
    KEPT_BATCHES,
    TEXT_TINY,
    Backbone,
    BackboneInputs,
    BackboneSpec,
    OfficialLayout,
    byte_tokenizer,
)
from fk_reward.rewards.preprocessing import resize_by_pil, unit_float
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens
from fk_reward.rewards.row_positions import padded_rows, rows_made_once
from fk_reward.rewards.weights import load_headless

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import PhiLanguageModel, PhiVisionModel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_TEXT_BEFORE_IMAGE = "<|user|>\n"
_IMAGE_TAG = re.compile(r"<\|image_\d+\|>")


@dataclass(frozen=True, kw_only=True)
class HDTransform:
    """What the image processor of `microsoft/Phi-3.5-vision-instruct` does to PIL images, done to tensors.

    The image is resized (bilinear, antialiased) so that its longer side spans as many crops as the budget allows at its
    aspect ratio, its shorter side is padded with white on both ends to a multiple of the crop size, and the result is
    cut into crops. One more crop shows all of the padded image, shrunk with bicubic interpolation without antialias.
    The formulas are those of the hub's `image_processing_phi3_v.py`. 8-bit tensors give what PIL images give there. For
    floating ones, what remains of the difference is PIL's rounding to 8 bits after each of the two passes of resizing:
    before normalisation at most 1.01/255 in the crops and 1.9/255 in the global one, on average 0.45/255 (the bounds
    of the test).

    Attributes:
        num_crops: largest number of crops besides the global one.
        crop_size: side of a crop in pixels.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divides the result.

    Raises:
        ValueError: when `num_crops` is not positive.

    Example:
        >>> transform = HDTransform(num_crops=4)
        >>> transform.resized_shape(512, 1024), transform.grid(512, 1024)
        ((336, 672), (1, 2))
        >>> transform(torch.rand(3, 512, 1024, generator=torch.Generator().manual_seed(0))).shape
        torch.Size([3, 3, 336, 336])
    """

    num_crops: int = 16
    crop_size: int = 336
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {self.num_crops}.")

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before padding.

        The longer side becomes s crops for the largest s with s * ceil(s / ratio) <= num_crops; the shorter one is
        rounded down, in floating point as in the official code.

        Raises:
            ValueError: when the image is so elongated that nothing of its shorter side would remain.

        Example:
            >>> HDTransform(num_crops=16).resized_shape(1024, 768)
            (1344, 1008)
        """
        ratio = max(height, width) / min(height, width)
        candidates = range(1, self.num_crops + 1)
        scale = max(count for count in candidates if count * math.ceil(count / ratio) <= self.num_crops)
        longer = scale * self.crop_size
        shorter = int(longer / ratio)
        if shorter < 1:
            raise ValueError(
                f"An image of {height} x {width} pixels is too elongated: when its longer side is resized to {longer} "
                "pixels, nothing remains of the shorter one. Crop or pad it first."
            )
        return (shorter, longer) if height < width else (longer, shorter)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of crops, without the global one.

        Example:
            >>> HDTransform(num_crops=16).grid(1024, 1024)
            (4, 4)
        """
        rows, columns = (math.ceil(side / self.crop_size) for side in self.resized_shape(height, width))
        return rows, columns

    def __call__(self, image: Tensor) -> Tensor:
        """Resize, pad, normalise and cut.

        Args:
            image: (3, H, W), floating in [0, 1] or uint8.

        Returns:
            (1 + rows * columns, 3, crop_size, crop_size), same dtype (float32 for uint8) and device, normalised: the
            global crop, then the others row by row.

        H, W: height and width.
        """
        return self.batch(image[None])[0]

    def batch(self, images: Tensor) -> Tensor:
        """The same for images of one size at once.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B, 1 + rows * columns, 3, crop_size, crop_size).

        B: number of images, H, W: height and width.
        """
        images = self._normalize(self._pad(self._resize(images)))
        crop_shape = (self.crop_size, self.crop_size)
        # Bicubic without antialias, and after normalisation: so the official processor shrinks its global crop.
        overview = functional.interpolate(images, crop_shape, mode="bicubic", align_corners=False)
        blocks = images.unflatten(3, (-1, self.crop_size)).unflatten(2, (-1, self.crop_size))
        crops = blocks.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return torch.cat([overview[:, None], crops], dim=1)

    def _resize(self, images: Tensor) -> Tensor:
        shape = self.resized_shape(*images.shape[-2:])
        if images.dtype == torch.uint8:
            return unit_float(self._resize_by_pil(images, shape))
        return functional.interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)

    @staticmethod
    def _resize_by_pil(images: Tensor, shape: tuple[int, int]) -> Tensor:
        if images.shape[-2] <= images.shape[-1]:
            return resize_by_pil(images, shape, mode="bilinear")
        # The official processor turns upright images on their side first: so PIL rounds after the other pass.
        return resize_by_pil(images.mT, shape[::-1], mode="bilinear").mT

    def _pad(self, image: Tensor) -> Tensor:
        missing_height, missing_width = (-side % self.crop_size for side in image.shape[-2:])
        top, left = missing_height // 2, missing_width // 2
        return functional.pad(image, (left, missing_width - left, top, missing_height - top), value=1.0)  # white

    def _normalize(self, image: Tensor) -> Tensor:
        mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std


class PhiVisionBackbone(Backbone):
    """`microsoft/Phi-3.5-vision-instruct`, without the hub's code, which transformers 5 cannot run.

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
    accepts_uint8 = True

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
            raise ValueError("The tokenizer must have an eos_token (<|endoftext|> on the hub), got None.")
        self.model = model
        self.tokenizer = tokenizer
        self.hd_transform = HDTransform(
            num_crops=num_crops, crop_size=model.config.vision_config.image_size, mean=tuple(mean), std=tuple(std)
        )
        self._known = KeptBatches(size=KEPT_BATCHES)
        self.freeze()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # names its options
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

        Its own option is `num_crops`, as for the class; the number in the folder's files is not read.
        """
        from transformers import ImageProcessingMixin

        from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import PhiVisionModel

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

    def with_options(self, **options: Any) -> PhiVisionBackbone:
        """The same backbone with another `num_crops`; as `Backbone.with_options`."""
        if options.keys() - {"num_crops"}:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(options.keys() - {'num_crops'})}.")
        other = copy.copy(self)  # shares its modules
        other.hd_transform = dataclasses.replace(self.hd_transform, **options)
        return other

    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Cut images into crops and tokenise prompts; arguments as `Backbone.prepare`.

        Returns:
            Inputs whose `pixel_values` are (N, 3, crop_size, crop_size), the crops of all images, and whose `extras`
            hold "grids", the rows and columns of each image.

        N: number of crops of all images.
        """
        grids = [self.hd_transform.grid(*image.shape[-2:]) for image in images]
        counts = [self.model.vision_embed_tokens.num_tokens(*grid) for grid in grids]
        rows = tuple(zip(prompts, counts, strict=True))
        tokens = self._known.get(rows, lambda: rows_made_once(rows, self._padded))
        return BackboneInputs(
            **{name: value.to(self.device) for name, value in tokens.items()},
            pixel_values=self._crops(images),
            extras={"grids": grids},
        )

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """(T, 4C): all crops through the CLIP tower at once, merged 2 x 2, with the separators in their places."""
        return self.model.vision_embed_tokens(inputs.pixel_values, inputs.extras["grids"])

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """(T, D): the projector on features and separators, in the projector's dtype."""
        *_, bias = projector.parameters()
        return projector(features.to(bias))

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """As `Backbone.language_arguments`; mask and positions only for batches that LongRoPE reads in two ways."""
        arguments = {"inputs_embeds": self.embed_tokens(inputs, visual_tokens), "use_cache": False}
        length = inputs.input_ids.shape[1]
        if length <= self.language_model.config.original_max_position_embeddings:
            # Padding is on the right, which causal attention never sees; without a mask, faster kernels can be used.
            return arguments
        # LongRoPE chooses its factors by a row's largest position: counting on into the padding could switch them, so
        # that there the last position of the row is repeated, which without a mask would mean another sequence.
        places = torch.arange(length, device=inputs.input_ids.device)
        positions = torch.minimum(places, inputs.last_token[:, None])
        return arguments | {"attention_mask": inputs.attention_mask, "position_ids": positions}

    def _crops(self, images: Sequence[Tensor]) -> Tensor:
        """(N, 3, crop_size, crop_size), the crops of all images; neighbours of one size are cut together."""
        # A batch of the sampler has one size: resize it in one call.
        runs = itertools.groupby(images, key=lambda image: (image.shape, image.dtype))
        return torch.cat([self.hd_transform.batch(torch.stack(list(run))).flatten(0, 1) for _, run in runs])

    def _padded(self, rows: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        """What depends on prompts and numbers of visual tokens alone, on the CPU."""
        ids, masks = zip(*self._tokenize(*zip(*rows, strict=True)), strict=True)
        read = [np.ones_like(mask) for mask in masks]
        return {
            "input_ids": padded_rows(ids, 0, on_the_left=False),
            "attention_mask": padded_rows(read, 0, on_the_left=False).bool(),
            "image_mask": padded_rows(masks, 0, on_the_left=False).bool(),
        }

    def _tokenize(self, prompts: Sequence[str], counts: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each prompt and number of visual tokens the ids of its row, 0 for the visual ones, and their mask."""
        refuse_control_tokens(prompts, control_tokens(self.tokenizer))
        # Image tags are not in the vocabulary: the official processor finds them by a pattern.
        for prompt in prompts:
            refuse_control_tokens([prompt], _IMAGE_TAG.findall(prompt))
        before = self.tokenizer(_TEXT_BEFORE_IMAGE).input_ids
        after = self.tokenizer([f"\n{prompt}{self.tokenizer.eos_token}" for prompt in prompts]).input_ids
        rows = []
        for count, ids in zip(counts, after, strict=True):
            image_mask = np.repeat([0, 1, 0], [len(before), count, len(ids)])
            input_ids = np.concatenate([before, np.zeros(count, dtype=np.int64), ids])
            rows.append((input_ids, image_mask))
        return rows


def _load_tokenizer(path: str | os.PathLike[str], *, revision: str) -> PreTrainedTokenizerFast:
    """Read tokenizer.json; whether it opens a text with `<s>` is for `add_bos_token` to say, as in transformers 4."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, revision=revision)
    settings = get_tokenizer_config(path, revision=revision)
    if "add_bos_token" in settings:
        tokenizer.add_bos_token = settings["add_bos_token"]
    return tokenizer


def _random(sizes: Mapping[str, Any], *, num_crops: int = 16) -> PhiVisionBackbone:
    from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import (
        EMBEDDING_LAYER,
        PhiVisionConfig,
        PhiVisionModel,
    )

    tokenizer = byte_tokenizer("<|user|>")
    # LongRoPE needs factors, one for each pair of channels; their values change neither speed nor memory.
    factors = [1.0] * (sizes["hidden_size"] // sizes["num_attention_heads"] // 2)
    config = PhiVisionConfig(
        **sizes,
        pad_token_id=tokenizer.pad_token_id,
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        img_processor={"image_dim_out": sizes["vision_config"]["hidden_size"]},
        embd_layer=dict(EMBEDDING_LAYER),
    )
    return PhiVisionBackbone(PhiVisionModel(config), tokenizer, num_crops=num_crops)


PHI3_VISION = BackboneSpec(
    backbone=PhiVisionBackbone,
    hub_id="microsoft/Phi-3.5-vision-instruct",
    licence="MIT",
    memory="9 GB in bfloat16",
    official=OfficialLayout(
        folder_word="phi",
        projector="img_projection",
        projector_keys=("0.weight", "0.bias", "2.weight", "2.bias"),
        query="qkv_proj",
        options={"num_crops": 16},
    ),
    full_size={
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": 262144,
        "vision_config": CLIP_LARGE,
    },
    tiny=TEXT_TINY | {"original_max_position_embeddings": 1024, "vision_config": CLIP_TINY},
    build=_random,
)
