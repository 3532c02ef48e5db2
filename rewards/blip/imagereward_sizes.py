"""Sizes of an ImageReward, read from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

MLP_INDICES = (0, 2, 4, 6, 7)
"""Places of the linear layers in the official MLP; between them stand dropouts."""

_TEXT, _VISION = "blip.text_encoder", "blip.visual_encoder"
_SIZES: dict[str, tuple[str, int]] = {
    "patch_size": (f"{_VISION}.patch_embed.proj.weight", 2),
    "vision_width": (f"{_VISION}.cls_token", 2),
    "vision_mlp_width": (f"{_VISION}.blocks.0.mlp.fc1.weight", 0),
    "vocab_size": (f"{_TEXT}.embeddings.word_embeddings.weight", 0),
    "max_positions": (f"{_TEXT}.embeddings.position_embeddings.weight", 0),
    "text_width": (f"{_TEXT}.embeddings.word_embeddings.weight", 1),
    "text_mlp_width": (f"{_TEXT}.encoder.layer.0.intermediate.dense.weight", 0),
}
"""Field -> the tensor that shows it, and along which dimension."""


@dataclass(frozen=True, kw_only=True)
class ImageRewardSizes:
    """Sizes of BLIP's two towers and of the MLP on top.

    Attributes:
        image_size: side of the square picture, pixels.
        patch_size: side of a patch, pixels.
        vision_width: width of the vision tower.
        vision_mlp_width: width inside its feed-forward layers.
        vision_layers: number of its layers.
        vocab_size: number of tokens.
        max_positions: number of positions of the text encoder.
        text_width: width of the text encoder.
        text_mlp_width: width inside its feed-forward layers.
        text_layers: number of its layers.
        mlp_widths: inputs of the MLP's five layers.

    Example:
        >>> ImageRewardSizes.official().mlp_widths
        (768, 1024, 128, 64, 16)
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_mlp_width: int
    vision_layers: int
    vocab_size: int
    max_positions: int
    text_width: int
    text_mlp_width: int
    text_layers: int
    mlp_widths: tuple[int, ...]

    @classmethod
    def official(cls) -> ImageRewardSizes:
        """Those of `ImageReward.pt`: ViT-L/16 on 224 pixels, BERT-base, as its authors' code builds them."""
        vision = {"patch_size": 16, "vision_width": 1024, "vision_mlp_width": 4096, "vision_layers": 24}
        text = {"max_positions": 512, "text_width": 768, "text_mlp_width": 3072, "text_layers": 12}
        return cls(image_size=224, vocab_size=30524, mlp_widths=(768, 1024, 128, 64, 16), **vision, **text)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> ImageRewardSizes:
        """Read the sizes off tensors with the official names.

        Raises:
            ValueError: when a tensor that shows a size is missing, or the positions are not those of a square picture.
        """
        sizes = {field: _size(state_dict, *place) for field, place in _SIZES.items()}
        num_patches = _size(state_dict, f"{_VISION}.pos_embed", 1) - 1
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise ValueError(f"{_VISION}.pos_embed has positions for {num_patches} patches, which make no square.")
        return cls(
            image_size=side * sizes["patch_size"],
            vision_layers=_count(state_dict, rf"{_VISION}\.blocks\.(\d+)\..*"),
            text_layers=_count(state_dict, rf"{_TEXT}\.encoder\.layer\.(\d+)\..*"),
            mlp_widths=tuple(_size(state_dict, f"mlp.layers.{index}.weight", 1) for index in MLP_INDICES),
            **sizes,
        )

    def check_head_size(self, head_size: int) -> None:
        """Raise a ValueError when attention heads of that size do not fill both towers."""
        widths = {field: getattr(self, field) for field in ("vision_width", "text_width")}
        if head_size < 1 or any(width % head_size for width in widths.values()):
            raise ValueError(f"head_size must divide the widths of both towers, {widths}, got {head_size}.")


def _size(state_dict: Mapping[str, Tensor], name: str, dimension: int) -> int:
    tensor = state_dict.get(name)
    if tensor is None or tensor.ndim <= dimension:
        found = "it is missing" if tensor is None else f"its shape is {tuple(tensor.shape)}"
        raise ValueError(f"No weights of ImageReward: a size is read from the tensor {name}, but {found}.")
    return tensor.shape[dimension]


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in state_dict if (match := re.fullmatch(pattern, name))})
