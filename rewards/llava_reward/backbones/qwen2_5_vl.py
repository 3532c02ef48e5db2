"""Qwen2.5-VL as a backbone: transformers' own model, its patch merger taken out of the vision tower."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fk_reward.rewards.llava_reward.backbones.base import (
    TEXT_TINY,
    Backbone,
    BackboneInputs,
    BackboneSpec,
    OfficialLayout,
    byte_tokenizer,
)
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens
from fk_reward.rewards.weights import load_headless

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLModel, Qwen2Tokenizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 (no password)
"""Stands once for each visual token."""

TEMPLATE = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>"
"""The chat template's user turn alone, as LLaVA-Reward reads it: no system turn, nothing after the last token."""

_NEW_NAMES = {r"^model\.(?=visual\.|language_model\.)": ""}  # the hub's older names are mapped by transformers itself

MAX_ASPECT_RATIO = 200  # that of transformers' `smart_resize`

_DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # transformers' for a silent configuration


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width that Qwen's processors resize an image to, as transformers' function of this name.

    Each side is rounded to the nearest multiple of `factor`. Where the area is then outside the limits, both sides are
    scaled by one factor first, and rounded towards the inside of the limits.

    Raises:
        ValueError: when one side is more than 200 times the other.

    Example:
        >>> smart_resize(1024, 1024, factor=28, min_pixels=3136, max_pixels=12845056)
        (1036, 1036)
        >>> smart_resize(1024, 1024, factor=28, min_pixels=3136, max_pixels=784 * 64)
        (224, 224)
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"Qwen2.5-VL takes images whose sides differ by a factor of at most {MAX_ASPECT_RATIO}, "
            f"got {height}x{width}."
        )
    area = round(height / factor) * round(width / factor) * factor**2
    if area > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
    elif area < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
    else:
        rows, columns = (round(side / factor) for side in (height, width))
    return rows * factor, columns * factor


@dataclass(frozen=True, kw_only=True)
class PatchTransform:
    """What transformers' `Qwen2VLImageProcessor` does to a PIL image, done to a tensor.

    An 8-bit tensor gives what a PIL image gives. For a floating one, the difference that remains is that of
    `ImagePreprocessing`, PIL's rounding to 8 bits. The width is resized before
    the height, as Pillow up to 12 does always; from 13 on it takes the height first where that shrinks much more than
    the width (python-pillow/Pillow pull request 9549), which shows in pixels that overshoot the range.

    Attributes:
        min_pixels: a smaller image is enlarged to at least this area.
        max_pixels: a larger image is reduced to at most this area.
        pixels: filter of the resizing and normalisation; its `size` is replaced by each image's own.
        patch_size: side of a patch in pixels.
        temporal_patch_size: number of frames in a patch; an image is repeated that often.
        merge_size: side, in patches, of the square that becomes one visual token.

    Example:
        >>> import torch
        >>> transform = PatchTransform.from_config({"min_pixels": 3136, "max_pixels": 12845056})
        >>> patches, grid = transform(torch.ones(3, 60, 100))
        >>> patches.shape, grid
        (torch.Size([32, 1176]), (4, 8))
    """

    min_pixels: int
    max_pixels: int
    pixels: ImagePreprocessing
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"Expected 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}.")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> PatchTransform:
        """Read the content of a `preprocessor_config.json`, whose limits are `min_pixels` or `size.shortest_edge` etc.

        Args:
            config: the content.
            min_pixels: overrides the configuration's limit.
            max_pixels: overrides the configuration's limit.

        Raises:
            ValueError: for a processor that does not resize, has no limits, or whose filter or rescaling
                `ImagePreprocessing` does not know.

        Example:
            >>> PatchTransform.from_config({"size": {"shortest_edge": 3136, "longest_edge": 784000}}).max_pixels
            784000
        """
        if not config.get("do_resize", True):
            raise ValueError("Only an image processor that resizes is supported, got do_resize = false.")
        sizes = {name: config[name] for name in ("patch_size", "temporal_patch_size", "merge_size") if name in config}
        return cls(
            min_pixels=_limit(config, "min_pixels", "shortest_edge") if min_pixels is None else min_pixels,
            max_pixels=_limit(config, "max_pixels", "longest_edge") if max_pixels is None else max_pixels,
            pixels=ImagePreprocessing.from_config({**config, "do_resize": False, "do_center_crop": False}),
            **sizes,
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str = "main",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> PatchTransform:
        """Read the settings of a hub repository or folder; limits as in `from_config`.

        Raises:
            OSError: when there is no `preprocessor_config.json` (nor a `processor_config.json` that contains it).
            ValueError: as `from_config`.
        """
        from transformers import ImageProcessingMixin

        config, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
        return cls.from_config(config, min_pixels=min_pixels, max_pixels=max_pixels)

    def __call__(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Resize, normalise and cut one image into patches.

        Args:
            image: (3, H, W), floating in [0, 1] or uint8.

        Returns:
            (L, C) patches of the same dtype (float32 for uint8) and device, and the grid (rows, columns) with rows *
            columns = L. The patches of a square of `merge_size` x `merge_size` follow one another; squares are in
            reading order.

        Raises:
            ValueError: when one side is more than 200 times the other.

        L: number of patches, C: 3 * temporal_patch_size * patch_size * patch_size.
        """
        rows, columns = self.grid(*image.shape[-2:])
        size = (rows * self.patch_size, columns * self.patch_size)
        return self._patches(dataclasses.replace(self.pixels, size=size)(image[None])[0]), (rows, columns)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image.

        Example:
            >>> PatchTransform.from_config({"min_pixels": 3136, "max_pixels": 12845056}).grid(60, 100)
            (4, 8)
        """
        height, width = smart_resize(
            height,
            width,
            factor=self.patch_size * self.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return height // self.patch_size, width // self.patch_size

    def _patches(self, pixels: Tensor) -> Tensor:
        tiles = pixels.unflatten(2, (-1, self.merge_size, self.patch_size))
        tiles = tiles.unflatten(1, (-1, self.merge_size, self.patch_size))
        tiles = tiles.permute(1, 4, 2, 5, 0, 3, 6)  # squares down and across, patches down and across, colour, pixels
        frames = tiles.unsqueeze(5).expand(*tiles.shape[:5], self.temporal_patch_size, -1, -1)
        return frames.flatten(4).flatten(0, 3)


def _limit(config: Mapping[str, Any], name: str, edge: str) -> int:
    limit = config.get(name)
    if limit is None:
        limit = (config.get("size") or _DEFAULT_SIZE).get(edge)
    if limit is None:
        raise ValueError(f"The image processor's configuration has neither {name} nor size.{edge}; pass {name}.")
    return int(limit)


class _GroupedRows(nn.Module):
    """Replaces the merger in the vision tower: lays the rows of a visual token side by side.

    The tower applies it to rows in the order of its attention windows and then puts the result into reading order.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows

    def forward(self, rows: Tensor) -> Tensor:
        """(L, C) to (L / num_rows, num_rows * C)."""
        return rows.unflatten(0, (-1, self.num_rows)).flatten(1)


class QwenVLBackbone(Backbone):
    """Qwen2.5-VL without language-model head, frozen; the projector is the vision tower's patch merger.

    What the language model reads is the chat template's user turn, which ends in `<|im_end|>`, and positions of three
    dimensions (time, height, width). Both agree with the official evaluation code of LLaVA-Reward.

    Args:
        model: transformers' `Qwen2_5_VLModel`; the backbone takes its merger out of it, so it serves one backbone only.
        tokenizer: its tokenizer.
        transform: its image preprocessing.

    Raises:
        ValueError: when model, tokenizer and preprocessing do not belong together, or the model already has a backbone.

    Example:
        >>> backbone = QwenVLBackbone.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")  # doctest: +SKIP
        >>> inputs = backbone.prepare([torch.rand(3, 512, 512)], ["a red star"])  # doctest: +SKIP
    """

    model_type: ClassVar[str] = "qwen2_5_vl"
    norm_eps: ClassVar[float] = 1e-6
    accepts_uint8: ClassVar[bool] = True
    model: Qwen2_5_VLModel

    def __init__(self, model: Qwen2_5_VLModel, tokenizer: Qwen2Tokenizer, *, transform: PatchTransform) -> None:
        from fk_reward.rewards.batched_windows import batch_windows

        super().__init__()
        _check_together(model, tokenizer, transform)
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        batch_windows(model.visual)
        # Each dimension has its own projector, the tower runs once for all: so the merger must be apart from it.
        self.merger = model.visual.merger
        model.visual.merger = _GroupedRows(transform.merge_size**2)
        self.freeze()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # noqa: PLR0913 (options of one checkpoint)
        cls,
        path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        device_map: str | dict[str, Any] | None = None,
        quantization_config: QuantizationConfigMixin | None = None,
        revision: str = "main",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> QwenVLBackbone:
        """Load a hub repository or folder, whose weights may have the names of transformers 4 or 5.

        Its own options are `min_pixels` and `max_pixels`, the areas between which an image is resized; None for the
        folder's. The largest one bounds the number of visual tokens: one for 784 pixels.
        """
        from transformers import Qwen2_5_VLModel, Qwen2Tokenizer

        model = load_headless(
            Qwen2_5_VLModel,
            path,
            revision=revision,
            dtype=torch_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
            key_mapping=_NEW_NAMES,
        )
        tokenizer = Qwen2Tokenizer.from_pretrained(path, revision=revision)
        transform = PatchTransform.from_pretrained(
            path, revision=revision, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return cls(model, tokenizer, transform=transform)

    @property
    def language_model(self) -> nn.Module:
        """The text model; LoRA adapts it."""
        return self.model.language_model

    @property
    def projector(self) -> nn.Module:
        """The patch merger: RMSNorm of each patch, then an MLP on the patches of a visual token together."""
        return self.merger

    @property
    def options(self) -> dict[str, Any]:
        """The pixel limits in use."""
        return {"min_pixels": self.transform.min_pixels, "max_pixels": self.transform.max_pixels}

    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Cut the images into patches and tokenise the prompts; `extras` has `grid_thw` and `position_ids`.

        Raises:
            ValueError: for a prompt that contains a control token such as `<|image_pad|>`, an image with one side more
                than 200 times the other, and unequal counts.
        """
        refuse_control_tokens(prompts, control_tokens(self.tokenizer, IMAGE_TOKEN))
        patches, grids = zip(*(self.transform(image) for image in images), strict=True)
        grid_thw = torch.tensor([(1, *grid) for grid in grids])
        num_visual_tokens = (grid_thw.prod(dim=1) // self.transform.merge_size**2).tolist()
        # One placeholder as text, all of them as token ids: thousands of them take long to tokenise.
        rows = self.tokenizer([TEMPLATE.format(image=IMAGE_TOKEN, prompt=prompt) for prompt in prompts])["input_ids"]
        expanded = [self._expanded(row, count) for row, count in zip(rows, num_visual_tokens, strict=True)]
        tokens = self.tokenizer.pad({"input_ids": expanded}, padding_side="right", return_tensors="pt")
        image_mask = tokens["input_ids"] == self.model.config.image_token_id
        position_ids, _ = self.model.get_rope_index(
            tokens["input_ids"],
            mm_token_type_ids=image_mask.long(),
            image_grid_thw=grid_thw,
            attention_mask=tokens["attention_mask"],
        )
        return BackboneInputs(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].bool().to(self.device),
            image_mask=image_mask.to(self.device),
            pixel_values=torch.cat(patches).to(self.device),
            extras={"grid_thw": grid_thw.to(self.device), "position_ids": position_ids.to(self.device)},
        )

    def _expanded(self, ids: list[int], num_visual_tokens: int) -> list[int]:
        token = self.model.config.image_token_id
        place = ids.index(token)
        return [*ids[:place], *[token] * num_visual_tokens, *ids[place + 1 :]]

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """(T, U * C) outputs of the tower's last block, a visual token's U patches of width C side by side."""
        return self.model.visual(inputs.pixel_values, grid_thw=inputs.extras["grid_thw"]).pooler_output

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """(T, D) visual tokens."""
        patches = features.unflatten(-1, (self.transform.merge_size**2, -1)).flatten(0, 1)
        return projector(patches)

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """As `Backbone.language_arguments`; `position_ids` are three-dimensional, (3, B, S)."""
        return {
            "inputs_embeds": self.embed_tokens(inputs, visual_tokens),
            "attention_mask": inputs.attention_mask,
            "position_ids": inputs.extras["position_ids"],
            "use_cache": False,
        }


def _check_together(model: Qwen2_5_VLModel, tokenizer: Qwen2Tokenizer, transform: PatchTransform) -> None:
    if isinstance(model.visual.merger, _GroupedRows):
        raise ValueError("This model already belongs to a backbone, which took its merger; load it again.")
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if token_id != model.config.image_token_id:
        raise ValueError(
            f"config.json has image_token_id = {model.config.image_token_id}, the tokenizer has {token_id} for "
            f"{IMAGE_TOKEN}: they are not of the same checkpoint."
        )
    vision = model.config.vision_config
    expected = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    got = (transform.patch_size, transform.temporal_patch_size, transform.merge_size)
    if got != expected:
        raise ValueError(
            f"The vision tower reads patches of (size, frames, merged side) = {expected}, the image preprocessing "
            f"makes {got}: they are not of the same checkpoint."
        )


def _random(sizes: Mapping[str, Any], *, min_pixels: int = 3136, max_pixels: int = 12845056) -> QwenVLBackbone:
    # The default limits are those of the hub's preprocessor_config.json.
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)
    config = Qwen2_5_VLConfig(
        text_config=sizes["text_config"] | {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id},
        vision_config=sizes["vision_config"],
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    transform = PatchTransform.from_config({"min_pixels": min_pixels, "max_pixels": max_pixels})
    return QwenVLBackbone(Qwen2_5_VLModel(config), tokenizer, transform=transform)


QWEN2_5_VL = BackboneSpec(
    backbone=QwenVLBackbone,
    hub_id="Qwen/Qwen2.5-VL-7B-Instruct",
    licence="Apache-2.0",
    memory="17 GB in bfloat16",
    official=OfficialLayout(
        folder_word="qwen",
        name_suffix="@qwen",
        projector="merger",
        projector_keys=("ln_q.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
        query="q_proj",
        # The official code looks for the visual tokens by id 151643, which is padding, instead of 151655.
        attends_to="nothing",
    ),
    full_size={
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    },
    tiny={
        "text_config": TEXT_TINY
        | {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
    },
    build=_random,
)
