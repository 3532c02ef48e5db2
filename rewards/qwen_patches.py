"""Preprocessing of Qwen's vision towers on tensors: resize, normalise, cut into patches; on device, differentiable."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fk_reward.rewards.preprocessing import ImagePreprocessing

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
        return self._patches(self._resized(image[None])[0]), self.grid(*image.shape[-2:])

    def batch(self, images: Tensor) -> Tensor:
        """Patches of images of one size at once, one image after the other.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B * L, C), as a call gives them for each.

        B: number of images, H, W: height and width, L, C: as for a call.
        """
        return self._patches(self._resized(images)).flatten(0, 1)

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

    def _resized(self, images: Tensor) -> Tensor:
        rows, columns = self.grid(*images.shape[-2:])
        size = (rows * self.patch_size, columns * self.patch_size)
        return dataclasses.replace(self.pixels, size=size)(images)

    def _patches(self, pixels: Tensor) -> Tensor:
        """(..., L, C) from (..., 3, H, W)."""
        tiles = pixels.unflatten(-1, (-1, self.merge_size, self.patch_size))
        tiles = tiles.unflatten(-4, (-1, self.merge_size, self.patch_size))
        first = tiles.ndim - 7
        # Squares down and across, patches down and across, colour, pixels.
        tiles = tiles.permute(*range(first), *(first + axis for axis in (1, 4, 2, 5, 0, 3, 6)))
        frames = tiles.unsqueeze(-3).expand(*tiles.shape[:-2], self.temporal_patch_size, -1, -1)
        return frames.flatten(-4).flatten(-5, -2)


def _limit(config: Mapping[str, Any], name: str, edge: str) -> int:
    limit = config.get(name)
    if limit is None:
        limit = (config.get("size") or _DEFAULT_SIZE).get(edge)
    if limit is None:
        raise ValueError(f"The image processor's configuration has neither {name} nor size.{edge}; pass {name}.")
    return int(limit)
