"""Qwen2.5-VL as a backbone: transformers' own model, its patch merger taken out of the vision tower."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.llava_reward.backbones.base import (
    KEPT_BATCHES,
    TEXT_TINY,
    Backbone,
    BackboneInputs,
    BackboneSpec,
    OfficialLayout,
    byte_tokenizer,
)
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens
from fk_reward.rewards.qwen_patches import PatchTransform
from fk_reward.rewards.row_positions import RowPositions, padded_rows, rows_made_once
from fk_reward.rewards.weights import load_headless

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLModel, Qwen2Tokenizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 (no password)
"""Stands once for each visual token."""

TEMPLATE = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>"
"""The chat template's user turn alone, as LLaVA-Reward reads it: no system turn, nothing after the last token."""

_NEW_NAMES = {r"^model\.(?=visual\.|language_model\.)": ""}  # the hub's older names are mapped by transformers itself


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
        self._known = KeptBatches(size=KEPT_BATCHES)
        self._row_positions = RowPositions(model.get_rope_index)
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
        grids = [self.transform.grid(*image.shape[-2:]) for image in images]
        rows = tuple(zip(prompts, grids, strict=True))
        known = self._known.get(rows, lambda: rows_made_once(rows, self._tokenized))
        tokens = {name: value.to(self.device) for name, value in known.items()}
        names = ("input_ids", "attention_mask", "image_mask")
        # A batch of the sampler has one size: resize it in one call.
        runs = itertools.groupby(images, key=lambda image: (image.shape, image.dtype))
        patches = [self.transform.batch(torch.stack(list(run))) for _, run in runs]
        return BackboneInputs(
            pixel_values=torch.cat(patches).to(self.device),
            extras={name: value for name, value in tokens.items() if name not in names},
            **{name: tokens[name] for name in names},
        )

    def _tokenized(self, rows: Sequence[tuple[str, tuple[int, int]]]) -> dict[str, Tensor]:
        """What depends on prompts and sizes alone, on the CPU."""
        prompts, grids = zip(*rows, strict=True)
        refuse_control_tokens(prompts, control_tokens(self.tokenizer, IMAGE_TOKEN))
        grid_thw = torch.from_numpy(np.array([(1, *grid) for grid in grids]))
        num_visual_tokens = [height * width // self.transform.merge_size**2 for height, width in grids]
        # One placeholder as text, all of them as token ids: thousands of them take long to tokenise.
        ids = self.tokenizer([TEMPLATE.format(image=IMAGE_TOKEN, prompt=prompt) for prompt in prompts])["input_ids"]
        expanded = [self._expanded(np.array(row), count) for row, count in zip(ids, num_visual_tokens, strict=True)]
        input_ids = padded_rows(expanded, self.tokenizer.pad_token_id, on_the_left=False)
        attention_mask = padded_rows([np.ones_like(row) for row in expanded], 0, on_the_left=False)
        image_mask = input_ids.numpy() == self.model.config.image_token_id  # NumPy: it costs the host a tenth
        placed = {
            "input_ids": input_ids,
            "mm_token_type_ids": torch.from_numpy(image_mask.astype(np.int64)),
            "image_grid_thw": grid_thw,
            "attention_mask": attention_mask,
        }
        return {
            "input_ids": input_ids,
            "attention_mask": torch.from_numpy(attention_mask.numpy().astype(bool)),
            "image_mask": torch.from_numpy(image_mask),
            "grid_thw": grid_thw,
            "position_ids": self._row_positions(placed),
        }

    def _expanded(self, ids: np.ndarray, num_visual_tokens: int) -> np.ndarray:
        token = self.model.config.image_token_id
        place = int(np.flatnonzero(ids == token)[0])
        return np.concatenate([ids[:place], np.full(num_visual_tokens, token), ids[place + 1 :]])

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """(T, U * C) outputs of the tower's last block, a visual token's U patches of width C side by side."""
        return self.model.visual(inputs.pixel_values, grid_thw=inputs.extras["grid_thw"]).pooler_output

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """(T, D) visual tokens."""
        patches = features.unflatten(-1, (self.transform.merge_size**2, -1)).flatten(0, 1)
        return projector(patches)

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """As `Backbone.language_arguments`, without a mask; `position_ids` are three-dimensional, (3, B, S)."""
        # Padding is on the right, which causal attention never sees; without a mask, faster kernels can be used.
        return {
            "inputs_embeds": self.embed_tokens(inputs, visual_tokens),
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
