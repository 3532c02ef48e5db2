"""The HD transform of Phi-3.5-vision on tensors: an image becomes a grid of square crops; on device, differentiable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class HDTransform:
    """What the image processor of `microsoft/Phi-3.5-vision-instruct` does to PIL pictures, done to tensors.

    The image is resized (bilinear, antialiased) so that its longer side spans as many crops as the budget allows at its
    aspect ratio, its shorter side is padded with white on both ends to a multiple of the crop size, and the result is
    cut into crops. One more crop shows all of the padded image, shrunk with bicubic interpolation without antialias.
    The formulas are those of the hub's `image_processing_phi3_v.py`. What remains of the difference to PIL is its
    rounding to 8 bits after each of the two passes of resizing: before normalisation at most 1.01/255 in the crops and
    1.9/255 in the global one, on average 0.45/255 (the bounds of the test).

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
            image: (3, H, W) floating in [0, 1].

        Returns:
            (1 + rows * columns, 3, crop_size, crop_size), same dtype and device, normalised: the global crop, then the
            others row by row.

        H, W: height and width.
        """
        return self.batch(image[None])[0]

    def batch(self, images: Tensor) -> Tensor:
        """The same for images of one size at once.

        Args:
            images: (B, 3, H, W) floating in [0, 1].

        Returns:
            (B, 1 + rows * columns, 3, crop_size, crop_size).

        B: number of images, H, W: height and width.
        """
        images = self._normalize(self._pad(self._resize(images)))
        crop_shape = (self.crop_size, self.crop_size)
        overview = functional.interpolate(images, crop_shape, mode="bicubic", align_corners=False)
        blocks = images.unflatten(3, (-1, self.crop_size)).unflatten(2, (-1, self.crop_size))
        crops = blocks.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return torch.cat([overview[:, None], crops], dim=1)

    def _resize(self, images: Tensor) -> Tensor:
        shape = self.resized_shape(*images.shape[-2:])
        return functional.interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)

    def _pad(self, image: Tensor) -> Tensor:
        missing_height, missing_width = (-side % self.crop_size for side in image.shape[-2:])
        top, left = missing_height // 2, missing_width // 2
        return functional.pad(image, (left, missing_width - left, top, missing_height - top), value=1.0)

    def _normalize(self, image: Tensor) -> Tensor:
        mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std
