"""Image processors of transformers as functions of tensors, where what they do is reproduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fk_reward.rewards.preprocessing import ImagePreprocessing, SquarePreprocessing
from fk_reward.rewards.qwen_patches import PatchTransform

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

CLIP_LIKE = ("CLIPImageProcessor", "BlipImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor")
"""Image processors that pad to a square, resize, crop and normalise, and nothing else."""

QWEN_LIKE = ("Qwen2VLImageProcessor",)
"""Image processors that cut into patches as Qwen2-VL's; Qwen2.5-VL and Qwen3-VL use the same one."""


def pixel_transform(
    processor: BaseImageProcessor, *, pad_to_square: bool | None = None
) -> Callable[[Tensor], Tensor] | None:
    """Reproduce an image processor on tensors (B, 3, H, W), floating in [0, 1] or uint8.

    For uint8 images the result is the processor's. For floating ones it is, before normalisation, within 2/255 of it,
    since a processor rounds to 8 bits on its way.

    Args:
        processor: of transformers.
        pad_to_square: whether images are first padded to a square of the mean colour; None for what the processor says.

    Returns:
        The function from images to `pixel_values`, differentiable; None for an image processor that is not reproduced.

    Raises:
        ValueError: for `pad_to_square=True` with an image processor that is not like CLIP's.

    Example:
        >>> import torch
        >>> from transformers import CLIPImageProcessorPil
        >>> transform = pixel_transform(CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8))
        >>> transform(torch.rand(2, 3, 9, 12)).shape
        torch.Size([2, 3, 8, 8])
    """
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    settings = {"do_center_crop": False, **processor.to_dict()}  # a processor without a crop does not list it
    if name in CLIP_LIKE:
        if pad_to_square is None:
            pad_to_square = name == "LlavaImageProcessor" and settings.get("do_pad", False)
        pixels = ImagePreprocessing.from_config(settings)
        return SquarePreprocessing(pixels) if pad_to_square else pixels
    if pad_to_square:
        raise ValueError(f"pad_to_square is for image processors like CLIP's, this model has a {name}: leave it out.")
    if name in QWEN_LIKE:
        return _Patches(PatchTransform.from_config(settings))
    return None


@dataclass(frozen=True)
class _Patches:
    """Patches of images of one size, one image after the other."""

    transform: PatchTransform

    def __call__(self, images: Tensor) -> Tensor:
        return self.transform.batch(images)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return self.transform.grid(height, width)
