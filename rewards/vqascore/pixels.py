"""The work of transformers' image processors on tensors, for those that are reproduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.rewards.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

CLIP_LIKE = ("CLIPImageProcessor", "BlipImageProcessor", "SiglipImageProcessor")
"""Image processors that resize, crop and normalise, and nothing else."""

QWEN_LIKE = ("Qwen2VLImageProcessor",)
"""Image processors that cut into patches as Qwen2-VL's; Qwen2.5-VL and Qwen3-VL use the same one."""


def pixel_transform(processor: BaseImageProcessor) -> Callable[[Tensor], Tensor] | None:
    """Find what does to tensors (B, 3, H, W) in [0, 1] what an image processor does to PIL pictures.

    Before normalisation the result is within 2/255 of the processor's, which rounds to 8 bits on its way.

    Returns:
        The function from images to `pixel_values`, differentiable; None for an image processor that is not reproduced.

    Example:
        >>> from transformers import CLIPImageProcessorPil
        >>> transform = pixel_transform(CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8))
        >>> transform(torch.rand(2, 3, 9, 12)).shape
        torch.Size([2, 3, 8, 8])
    """
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    settings = {"do_center_crop": False, **processor.to_dict()}  # what a processor does not have, it does not list
    if name in CLIP_LIKE:
        return ImagePreprocessing.from_config(settings)
    if name in QWEN_LIKE:
        return _patches(settings)
    return None


def _patches(settings: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import PatchTransform

    transform = PatchTransform.from_config(settings)
    return lambda images: torch.cat([transform(image)[0] for image in images])
