"""Between a picture and what the detector sees of it: resized, padded, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

SHORTER_SIDE = 800
LONGER_SIDE = 1333
"""The shorter side becomes 800 pixels, unless the longer one would exceed 1333."""

DIVISOR = 32
"""Padded at the right and at the bottom to a multiple of this, the coarsest stride of the backbone."""


@dataclass(frozen=True)
class Frame:
    """Sizes (height, width) on the way of a picture through the detector.

    Those of the test settings of mmdetection's `configs/mask2former`, which GenEval judges with.

    Attributes:
        picture: of the picture.
        resized: what it is resized to.

    Example:
        >>> frame = Frame.of((512, 1024))
        >>> frame.resized, frame.padded
        ((667, 1333), (672, 1344))
    """

    picture: tuple[int, int]
    resized: tuple[int, int]

    @classmethod
    def of(cls, picture: tuple[int, int], *, shorter_side: int = SHORTER_SIDE, longer_side: int = LONGER_SIDE) -> Frame:
        """The frame of a picture of this height and width.

        Args:
            picture: height and width.
            shorter_side: what the shorter side becomes, in pixels,
            longer_side: unless the longer one would then exceed this.

        Example:
            >>> Frame.of((512, 512)).resized
            (800, 800)
        """
        height, width = picture
        scale = min(shorter_side / min(picture), longer_side / max(picture))
        return cls(picture, (int(height * scale + 0.5), int(width * scale + 0.5)))

    @property
    def padded(self) -> tuple[int, int]:
        """The size of the detector's input."""
        height, width = (-(-side // DIVISOR) * DIVISOR for side in self.resized)
        return height, width

    def pad(self, inputs: Tensor) -> Tensor:
        """Pad resized and normalised pictures with zeros.

        Args:
            inputs: (B, C, h, w) of the size `resized`.

        Returns:
            (B, C, h', w') of the size `padded`.

        Example:
            >>> import torch
            >>> Frame((10, 20), (40, 80)).pad(torch.ones(1, 3, 40, 80)).shape
            torch.Size([1, 3, 64, 96])
        """
        (height, width), (padded_height, padded_width) = self.resized, self.padded
        return functional.pad(inputs, (0, padded_width - width, 0, padded_height - height))

    def restore(self, logits: Tensor) -> Tensor:
        """Bring what the detector says of parts of its input to the size of the picture, bilinearly.

        Args:
            logits: (N, h, w), of the padded input in some resolution.

        Returns:
            (N, H, W) of the picture.

        Example:
            >>> import torch
            >>> Frame((10, 20), (40, 80)).restore(torch.ones(5, 16, 24)).shape
            torch.Size([5, 10, 20])
        """
        height, width = self.resized
        inputs = _interpolate(logits[:, None], self.padded)[..., :height, :width]
        return _interpolate(inputs, self.picture)[:, 0]


def _interpolate(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values, size, mode="bilinear", align_corners=False)
