"""Qwen2.5-VL as a backbone: transformers' own model, its patch merger taken out of the vision tower."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fk_reward.rewards.llava_reward.backbone import Backbone, BackboneInputs
from fk_reward.rewards.llava_reward.qwen2_5_vl_images import PatchTransform
from fk_reward.rewards.loading_report import load_headless
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLModel, Qwen2Tokenizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 (no password)
"""Stands once for each visual token."""

TEMPLATE = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>"
"""The chat template's user turn alone, as LLaVA-Reward reads it: no system turn, nothing after the last token."""

_NEW_NAMES = {r"^model\.(?=visual\.|language_model\.)": ""}  # the hub's older names are mapped by transformers itself


class _GroupedRows(nn.Module):
    """Stands in the vision tower where the merger was: lays the rows of a visual token side by side.

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
    model: Qwen2_5_VLModel

    def __init__(self, model: Qwen2_5_VLModel, tokenizer: Qwen2Tokenizer, *, transform: PatchTransform) -> None:
        super().__init__()
        _check_together(model, tokenizer, transform)
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        self.merger = model.visual.merger
        model.visual.merger = _GroupedRows(transform.merge_size**2)
        self.freeze()

    @classmethod
    def from_pretrained(  # noqa: PLR0913 (options of one checkpoint)
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

        Args:
            path: hub id or folder.
            torch_dtype: dtype of the weights.
            attn_implementation: attention of both the vision tower and the language model.
            device_map: where the parts go, as in transformers.
            quantization_config: as in transformers.
            revision: branch, tag or commit of the hub repository.
            min_pixels: smallest area that a picture is resized to; None for the folder's.
            max_pixels: largest area, which bounds the number of visual tokens (one for 784 pixels); None for the
                folder's.

        Raises:
            OSError: when files are missing.
            ValueError: for another model type, and when the weights are not those of the config.
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
        """The pixel limits that are in force."""
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
        texts = [_text(prompt, count) for prompt, count in zip(prompts, num_visual_tokens, strict=True)]
        tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
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

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """(T, U * C) outputs of the tower's last block, a visual token's U patches of width C side by side."""
        return self.model.visual(inputs.pixel_values, grid_thw=inputs.extras["grid_thw"]).pooler_output

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """(T, D) visual tokens; T and D as in the base class."""
        patches = features.unflatten(-1, (self.transform.merge_size**2, -1)).flatten(0, 1)
        return projector(patches)

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """As in the base class; `position_ids` are the three-dimensional ones (3, B, S)."""
        return {
            "inputs_embeds": self.embed_tokens(inputs, visual_tokens),
            "attention_mask": inputs.attention_mask,
            "position_ids": inputs.extras["position_ids"],
            "use_cache": False,
        }


def _text(prompt: str, num_visual_tokens: int) -> str:
    return TEMPLATE.format(image=IMAGE_TOKEN * num_visual_tokens, prompt=prompt)


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
