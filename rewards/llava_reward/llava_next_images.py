"""LLaVA-NeXT's "anyres" preprocessing on tensors: the whole picture and a grid of crops; differentiable, on device."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

from fk_reward.rewards.preprocessing import ImagePreprocessing


@dataclass(frozen=True, kw_only=True)
class AnyResTransform:
    """What transformers' `LlavaNextImageProcessor` does to a PIL picture, done to a tensor.

    The resolution of the grid that fits the picture best is chosen; the picture is resized into it with its aspect
    kept, centred on black, and cut into square crops, row by row. Before them comes the whole picture, squeezed into
    one crop. The difference to PIL is its rounding to 8 bits, see `ImagePreprocessing`.

    Attributes:
        crop_size: side of a crop in pixels, the input size of the vision tower.
        grid_pinpoints: resolutions (height, width) of the grid, multiples of `crop_size`.
        pixels: filter of the resizing and normalisation; its sizes are None.

    Example:
        >>> pixels = ImagePreprocessing(size=None, crop_size=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> transform = AnyResTransform(crop_size=4, grid_pinpoints=((4, 8), (8, 4)), pixels=pixels)
        >>> transform(torch.ones(3, 5, 10)).shape  # the whole picture, the left and the right half
        torch.Size([3, 3, 4, 4])
    """

    crop_size: int
    grid_pinpoints: tuple[tuple[int, int], ...]
    pixels: ImagePreprocessing

    def __post_init__(self) -> None:
        """Refuse a grid that cannot be cut into crops."""
        sides = [side for resolution in self.grid_pinpoints for side in resolution]
        if not sides or any(side <= 0 or side % self.crop_size for side in sides):
            raise ValueError(
                f"grid_pinpoints must be resolutions (height, width) in multiples of crop_size={self.crop_size}, "
                f"got {self.grid_pinpoints}."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AnyResTransform:
        """Read the content of a `preprocessor_config.json`.

        Raises:
            ValueError: when `size` and `crop_size` are not one square, there is no grid, or as
                `ImagePreprocessing.from_config`.

        Example:
            >>> config = {"size": {"shortest_edge": 336}, "crop_size": 336, "image_grid_pinpoints": [[336, 672]]}
            >>> AnyResTransform.from_config(config).grid_pinpoints
            ((336, 672),)
        """
        pixels = ImagePreprocessing.from_config(config)
        side = pixels.crop_size[0] if pixels.crop_size else 0
        if pixels.crop_size != (side, side) or pixels.size not in (side, (side, side)):
            raise ValueError(f"size and crop_size must be one square, got {pixels.size} and {pixels.crop_size}.")
        return cls(
            crop_size=side,
            grid_pinpoints=tuple((height, width) for height, width in config.get("image_grid_pinpoints", ())),
            pixels=dataclasses.replace(pixels, size=None, crop_size=None),
        )

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, revision: str = "main") -> AnyResTransform:
        """Read the settings of a hub repository or folder, through transformers' own lookup.

        Raises:
            OSError: when there is no `preprocessor_config.json`.
            ValueError: as `from_config`.
        """
        from transformers import ImageProcessingMixin

        config, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
        return cls.from_config(config)

    def __call__(self, image: Tensor) -> Tensor:
        """Cut a picture into crops and normalise them.

        Args:
            image: (3, H, W) floating in [0, 1].

        Returns:
            (N, 3, P, P) of the same dtype and device: the whole picture, then the crops row by row.

        H, W: height and width, P: `crop_size`, N: 1 + number of crops in the chosen resolution.
        """
        whole = self._resize(image, (self.crop_size, self.crop_size))
        return self.pixels(torch.cat([whole.unsqueeze(0), self._cut(self._fit(image))]))

    def _fit(self, image: Tensor) -> Tensor:
        """(3, h, w), the picture in the middle of the best resolution; an odd margin is wider at the end."""
        resolution = select_best_resolution(tuple(image.shape[-2:]), list(self.grid_pinpoints))
        shape = get_patch_output_size(image, resolution, input_data_format=ChannelDimension.FIRST)
        vertical, horizontal = (total - part for total, part in zip(resolution, shape, strict=True))
        left, top = horizontal // 2, vertical // 2
        return functional.pad(self._resize(image, shape), (left, horizontal - left, top, vertical - top))

    def _cut(self, canvas: Tensor) -> Tensor:
        """(N - 1, 3, P, P), row by row."""
        side = self.crop_size
        return canvas.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)

    def _resize(self, image: Tensor, shape: tuple[int, int]) -> Tensor:
        resize = dataclasses.replace(self.pixels, size=shape, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return resize(image.unsqueeze(0)).squeeze(0)
