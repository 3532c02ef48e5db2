"""Preprocessing that keeps the whole picture: longer side to a size, black borders; on tensors, differentiable."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class PaddedPreprocessing:
    """What the package `hpsv2` does to tensors: `image_transform` with `resize_longest_max` in its transform.py.

    Like there, values that the bicubic filter throws beyond [0, 1] stay. Two inputs on which the official code fails
    are scored: a picture whose longer side has the size already is padded, too, and a side is at least one pixel long.

    Attributes:
        size: side of the square that comes out, in pixels.
        mean: per channel, subtracted from values in [0, 1] once the borders are there.
        std: per channel, divides the result.
        antialias: whether the filter widens when it shrinks a picture. It does since torchvision 0.17; before, when the
            HPS models were trained and their benchmark was published, it did not.

    Example:
        >>> import torch
        >>> preprocessing = PaddedPreprocessing(size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        >>> preprocessing(torch.ones(1, 3, 4, 8))[0, 0].round()
        tensor([[0., 0., 0., 0.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [0., 0., 0., 0.]])
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Resize, pad, normalise.

        Args:
            images: (B, 3, H, W) floating in [0, 1].

        Returns:
            (B, 3, size, size) of the same dtype and device.

        B: number of images, H, W: height and width before.
        """
        images = self._pad(self._resize(images))
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def _resize(self, images: Tensor) -> Tensor:
        scale = self.size / max(images.shape[-2:])
        if scale == 1:
            return images
        shape = tuple(max(round(side * scale), 1) for side in images.shape[-2:])
        return functional.interpolate(images, shape, mode="bicubic", antialias=self.antialias, align_corners=False)

    def _pad(self, images: Tensor) -> Tensor:
        rows, columns = (self.size - side for side in images.shape[-2:])
        top, left = rows // 2, columns // 2  # the odd pixel goes to the bottom and to the right
        return functional.pad(images, (left, columns - left, top, rows - top))
