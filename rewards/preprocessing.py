"""Preprocessing of CLIP's image tower on tensors: resize, centre crop, normalise; on device, differentiable.

Everything here takes images in two forms. Floating ones, in [0, 1], are those of a sampler: they are resized on their
device without rounding, and gradients reach them. 8-bit ones (uint8) come from files: they are resized by PIL, which
rounds to 8 bits after each pass, as in every published evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

PIL_FILTERS: dict[int, str] = {2: "bilinear", 3: "bicubic"}
"""`resample` numbers of PIL whose filter `torch.nn.functional.interpolate(antialias=True)` reproduces."""

_CLIP_DEFAULTS: dict[str, Any] = {  # what transformers' CLIPImageProcessor assumes where a configuration is silent
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def unit_float(images: Tensor) -> Tensor:
    """Divide 8-bit images by 255; floating ones stay as they are.

    Args:
        images: of any shape, uint8 in 0..255 or floating in [0, 1].

    Returns:
        The same shape, floating in [0, 1]; float32 for uint8.

    Example:
        >>> unit_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images


def resize_by_pil(images: Tensor, shape: tuple[int, int], *, mode: str) -> Tensor:
    """Resize 8-bit images by PIL itself, so that every rounding is PIL's; on the CPU, back to their device.

    Args:
        images: (B, 3, H, W) uint8.
        shape: (h, w) of the result.
        mode: "bicubic" or "bilinear".

    Returns:
        (B, 3, h, w) uint8.

    Example:
        >>> resize_by_pil(torch.full((1, 3, 4, 6), 7, dtype=torch.uint8), (2, 3), mode="bicubic").unique()
        tensor([7], dtype=torch.uint8)

    B: number of images, H, W: height and width before, h, w: after.
    """
    if images.shape[-2:] == shape:
        return images
    resample = Image.Resampling[mode.upper()]
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    resized = [np.asarray(Image.fromarray(array).resize(shape[::-1], resample)) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().to(images.device)


def pad_to_square(images: Tensor, mean: tuple[float, ...]) -> Tensor:
    """Put images into the middle of a square of one colour, as LLaVA-1.5 does (`image_aspect_ratio: "pad"`).

    Args:
        images: (B, 3, H, W), uint8 or floating in [0, 1].
        mean: colour in [0, 1]; rounded down to whole numbers of 255, as LLaVA pads 8-bit images.

    Returns:
        (B, 3, S, S) with S = max(H, W); an odd margin is wider at the end.

    Example:
        >>> pad_to_square(torch.ones(1, 3, 1, 4), (0.5, 0.5, 0.5))[0, 0, :, 0].mul(255).round()
        tensor([127., 255., 127., 127.])
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    levels = images.new_tensor([int(level * 255) for level in mean])
    colour = levels if images.dtype == torch.uint8 else levels / 255
    square = colour.view(3, 1, 1).repeat(len(images), 1, side, side)
    square[..., top : top + height, left : left + width] = images
    return square


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """What transformers' `CLIPImageProcessor` does to PIL images, done to tensors.

    8-bit tensors give what PIL images give. For floating ones the order of operations is that of PIL up to 12: the
    width is resized first, then the height, each result clipped to [0, 1]. What remains of the difference is PIL's
    rounding to 8 bits after each of these passes: before normalisation at most 1.25/255, on average 0.35/255 (the
    bounds of the test).

    Attributes:
        size: length of the shorter side after resizing, or (height, width), which ignores the aspect ratio;
            None for no resizing.
        crop_size: (height, width) of the central crop; None for no crop.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divides the result.
        mode: filter of the resizing, "bicubic" or "bilinear", antialiased.

    Example:
        >>> import torch
        >>> preprocessing = ImagePreprocessing(size=4, crop_size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> preprocessing(torch.ones(2, 3, 6, 12)).shape
        torch.Size([2, 3, 4, 4])
    """

    size: int | tuple[int, int] | None
    crop_size: tuple[int, int] | None
    accepts_uint8: ClassVar[bool] = True  # see `Reward.accepts_uint8`

    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImagePreprocessing:
        """Read the content of a `preprocessor_config.json` of CLIP, whose older form has plain numbers as sizes.

        Raises:
            ValueError: for a filter other than bilinear and bicubic, a rescaling other than 1/255, or a size
                in a form that CLIP's processor does not have.

        Example:
            >>> ImagePreprocessing.from_config({"size": 64, "crop_size": 64, "resample": 3}).crop_size
            (64, 64)
        """
        settings = {**_CLIP_DEFAULTS, **config}
        if settings["resample"] not in PIL_FILTERS:
            raise ValueError(f"resample must be one of {PIL_FILTERS} (PIL's numbers), got {settings['resample']!r}.")
        if not settings["do_rescale"] or abs(settings["rescale_factor"] * 255 - 1) > 1e-6:
            raise ValueError("Only a processor that rescales 0..255 by 1/255 is supported: images come in [0, 1].")
        normalize = settings["do_normalize"]
        return cls(
            size=_resize_target(settings["size"]) if settings["do_resize"] else None,
            crop_size=_height_width(settings["crop_size"]) if settings["do_center_crop"] else None,
            mean=tuple(settings["image_mean"]) if normalize else (0.0, 0.0, 0.0),
            std=tuple(settings["image_std"]) if normalize else (1.0, 1.0, 1.0),
            mode=PIL_FILTERS[settings["resample"]],
        )

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str], *, revision: str = "main", crops: bool = True
    ) -> ImagePreprocessing:
        """Read the settings of a hub repository or folder, through transformers' own lookup.

        Args:
            model: hub id or folder.
            revision: branch, tag or commit of the hub repository.
            crops: whether a processor that does not say so cuts out the centre: CLIP's does, SigLIP's does not.

        Raises:
            OSError: when there is no `preprocessor_config.json` (nor a `processor_config.json` that contains
                it).
            ValueError: as `from_config`.
        """
        from transformers import ImageProcessingMixin

        config, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
        return cls.from_config({"do_center_crop": crops, **config})

    def __call__(self, images: Tensor) -> Tensor:
        """Resize, crop, normalise.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B, 3, h, w) of the same dtype (float32 for uint8) and device, normalised; (h, w) is `crop_size` where there
            is one.

        Raises:
            ValueError: when the crop is larger than the resized image (transformers would pad with black).

        B: number of images, H, W: height and width before, h, w: after.
        """
        images = unit_float(self._center_crop(self.resize(images)))
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def resize(self, images: Tensor) -> Tensor:
        """Resize alone, to `size`; images as for a call, the result has their dtype."""
        height, width = self._resized_shape(*images.shape[-2:])
        if images.dtype == torch.uint8:
            return resize_by_pil(images, (height, width), mode=self.mode)
        # Two passes, each clipped, as PIL does: bicubic overshoots, and one pass would clip only once.
        images = self._interpolate(images, (images.shape[-2], width))
        return self._interpolate(images, (height, width))

    def _interpolate(self, images: Tensor, shape: tuple[int, int]) -> Tensor:
        if images.shape[-2:] == shape:
            return images
        return torch.nn.functional.interpolate(
            images, shape, mode=self.mode, antialias=True, align_corners=False
        ).clamp(0, 1)

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))  # rounded down, as transformers does
        return (self.size, longer) if height <= width else (longer, self.size)

    def _center_crop(self, images: Tensor) -> Tensor:
        if self.crop_size is None:
            return images
        (height, width), (crop_height, crop_width) = images.shape[-2:], self.crop_size
        if crop_height > height or crop_width > width:
            raise ValueError(f"A crop of {self.crop_size} does not fit into a resized image of {(height, width)}.")
        top, left = self._begin(height - crop_height), self._begin(width - crop_width)
        return images[..., top : top + crop_height, left : left + crop_width]

    def _begin(self, margin: int) -> int:
        return (
            margin // 2
        )  # the smaller half of an odd number, as in transformers; `TorchvisionPreprocessing` rounds otherwise


def _resize_target(size: int | Mapping[str, int]) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return _height_width(size)


def _height_width(size: int | Mapping[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if set(size) != {"height", "width"}:
        raise ValueError(
            f"A size must be a number or have the keys height and width (or shortest_edge alone), got {dict(size)}."
        )
    return int(size["height"]), int(size["width"])


@dataclass(frozen=True)
class SquarePreprocessing:
    """Pad to a square of the mean colour, then preprocess: LLaVA-1.5 and models built like it.

    What transformers' `LlavaImageProcessor` does with `do_pad`.

    Attributes:
        pixels: of the square.

    Example:
        >>> square = SquarePreprocessing(ImagePreprocessing.from_config({"size": 4, "crop_size": 4}))
        >>> square(torch.ones(1, 3, 4, 12)).shape
        torch.Size([1, 3, 4, 4])
    """

    accepts_uint8: ClassVar[bool] = True  # see `Reward.accepts_uint8`

    pixels: ImagePreprocessing

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), floating in [0, 1] or uint8, to what `pixels` makes of the square."""
        return self.pixels(pad_to_square(images, self.pixels.mean))


@dataclass(frozen=True, kw_only=True)
class TorchvisionPreprocessing(ImagePreprocessing):
    """torchvision's `Resize`, `CenterCrop` and `Normalize`.

    They differ from transformers' processor in one thing: where the margin to cut is odd, the crop begins at half of it
    rounded to the nearest even number, not down.

    Example:
        >>> import torch
        >>> preprocessing = TorchvisionPreprocessing(size=4, crop_size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
        >>> columns = torch.arange(7).expand(1, 3, 4, 7) / 7
        >>> (7 * preprocessing(columns))[0, 0, 0].round().tolist()  # 2 of 3 columns are cut on the left
        [2.0, 3.0, 4.0, 5.0]
    """

    @classmethod
    def of_clip(cls, size: int) -> TorchvisionPreprocessing:
        """Resize the shorter side to `size`, bicubic, cut the central square, normalise as CLIP does.

        Example:
            >>> TorchvisionPreprocessing.of_clip(224).crop_size
            (224, 224)
        """
        settings = ImagePreprocessing.from_config({"size": size, "crop_size": size})
        return cls(**vars(settings))

    def _begin(self, margin: int) -> int:
        return round(margin / 2)


@dataclass(frozen=True, kw_only=True)
class PaddedPreprocessing:
    """What the package `hpsv2` does to tensors: `image_transform` with `resize_longest_max` in its transform.py.

    There files become floating tensors first, so 8-bit images are divided by 255 and no resizing rounds. Like there,
    values that the bicubic filter throws beyond [0, 1] stay. Two inputs on which the official code fails are scored: an
    image whose longer side has the size already is padded, too, and a side is at least one pixel long.

    Attributes:
        size: side of the square that comes out, in pixels.
        mean: per channel, subtracted from values in [0, 1] once the borders are there.
        std: per channel, divides the result.
        antialias: whether the filter widens when it shrinks an image. It does since torchvision 0.17; before, when the
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

    accepts_uint8: ClassVar[bool] = True  # see `Reward.accepts_uint8`

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """Resize, pad, normalise.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B, 3, size, size) of the same dtype (float32 for uint8) and device.

        B: number of images, H, W: height and width before.
        """
        images = self._pad(self._resize(unit_float(images)))
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def _resize(self, images: Tensor) -> Tensor:
        scale = self.size / max(images.shape[-2:])
        if scale == 1:
            return images
        shape = tuple(max(round(side * scale), 1) for side in images.shape[-2:])
        return torch.nn.functional.interpolate(
            images, shape, mode="bicubic", antialias=self.antialias, align_corners=False
        )

    def _pad(self, images: Tensor) -> Tensor:
        rows, columns = (self.size - side for side in images.shape[-2:])
        top, left = rows // 2, columns // 2  # the odd pixel goes to the bottom and to the right
        return torch.nn.functional.pad(images, (left, columns - left, top, rows - top))
