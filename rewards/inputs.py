"""Inputs of rewards in one form: float tensors grouped by size, and a list of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image

from fk_reward.image_files import read_image
from fk_reward.rewards.preprocessing import unit_float
from fk_reward.text import require_text

if TYPE_CHECKING:
    from torch import Tensor

Images: TypeAlias = "Tensor | np.ndarray | Image.Image | Sequence[Tensor | np.ndarray | Image.Image]"
"""Images as `Reward.__call__` takes them, see `group_by_size`."""

RANGE_TOLERANCE = 1e-3
"""How far outside [0, 1] a pixel may lie: room for the rounding of half precision, not for another convention."""


@dataclass(frozen=True)
class ImageGroup:
    """Images of one size, with their places in the list that they came from.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], or uint8.
        indices: B places in the caller's order.
    """

    images: Tensor
    indices: tuple[int, ...]

    def split(self, batch_size: int | None) -> Iterator[ImageGroup]:
        """Yield consecutive groups of at most `batch_size` images; the group itself when it is None."""
        size = batch_size or len(self.indices)
        for start in range(0, len(self.indices), size):
            yield ImageGroup(self.images[start : start + size], self.indices[start : start + size])


def group_by_size(images: Images, *, keep_uint8: bool = False) -> list[ImageGroup]:
    """Bring images to float32 in [0, 1] and put those of equal height and width together.

    The type decides the range that is expected, never the values: floating tensors and arrays must lie in [0,
    1], uint8 ones are divided by 255. Floating tensors are not rounded, stay on their device and keep their
    graph. PIL images of any 8-bit mode become RGB as a viewer shows them: turned as their EXIF block says,
    transparent ones on white.

    Args:
        images: a tensor (B, 3, H, W) or (3, H, W); an array (B, H, W, 3) or (H, W, 3), channels last as NumPy
            and PIL have it; a PIL image; or a list or tuple of single images of these kinds, whose sizes may
            differ.
        keep_uint8: leave 8-bit images (PIL images, uint8 tensors and arrays) as they are, as uint8; those of one size
            are then a group apart from floating ones.

    Returns:
        Groups in the order in which their sizes first appear. A tensor or array gives exactly one group.

    Raises:
        TypeError: for another type or dtype.
        ValueError: for another shape, no images, values that are not finite or lie outside [0, 1] by more
            than 1e-3, and tensors on several devices.
        UnreadableImageError: a ValueError, for PIL images that are damaged or have more than 8 bits.

    Example:
        >>> groups = group_by_size([Image.new("L", (4, 2)), np.zeros((8, 8, 3), dtype=np.uint8), torch.ones(3, 2, 4)])
        >>> [(tuple(group.images.shape), group.indices) for group in groups]
        [((2, 3, 2, 4), (0, 2)), ((1, 3, 8, 8), (1,))]

    B: number of images, H: height, W: width.
    """
    if isinstance(images, (list, tuple)):
        groups = _stack_equal_sizes([_single(image, index) for index, image in enumerate(images)])
    else:
        batch = _batch(images)
        groups = [ImageGroup(batch, tuple(range(len(batch))))] if len(batch) else []
    if not groups:
        raise ValueError("images is empty: expected at least one image.")
    groups = groups if keep_uint8 else _all_floating(groups)
    for group in groups:
        _check_range(group)
    return groups


def in_order(images: Images, *, keep_uint8: bool = False) -> Tensor | list[Tensor]:
    """Bring images to float32 in [0, 1], in the caller's order.

    Args:
        images: as for `group_by_size`.
        keep_uint8: as for `group_by_size`.

    Returns:
        (B, 3, H, W) where all are of one size and dtype, else B tensors (3, H, W).

    Example:
        >>> [tuple(image.shape) for image in in_order([torch.ones(3, 2, 4), torch.ones(3, 8, 8)])]
        [(3, 2, 4), (3, 8, 8)]
        >>> tuple(in_order([Image.new("L", (4, 2)), torch.ones(3, 2, 4)]).shape)
        (2, 3, 2, 4)
    """
    groups = group_by_size(images, keep_uint8=keep_uint8)
    if len(groups) == 1:
        return groups[0].images
    placed = {i: image for group in groups for i, image in zip(group.indices, group.images, strict=True)}
    return [placed[i] for i in range(len(placed))]


def copied(images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Copy images, with their graph, before they go to code that may write to them.

    Args:
        images: as `in_order` gives them.

    Example:
        >>> images = torch.ones(1, 3, 2, 2)
        >>> _ = copied(images).zero_()
        >>> float(images.min())
        1.0
    """
    return images.clone() if isinstance(images, torch.Tensor) else [image.clone() for image in images]


def to_pil(images: Iterable[Tensor]) -> list[Image.Image]:
    """Round images to 8-bit RGB PIL images, for what takes no tensors.

    Args:
        images: (B, 3, H, W), or B tensors (3, H, W) of any sizes, floating in [0, 1] or uint8.

    Example:
        >>> [(image.size, image.getpixel((0, 0))) for image in to_pil(torch.ones(1, 3, 2, 4))]
        [((4, 2), (255, 255, 255))]

    B: number of images, H: height, W: width.
    """
    return [Image.fromarray(_to_uint8(image).permute(1, 2, 0).cpu().numpy()) for image in images]


def _to_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def prompt_list(prompts: str | Sequence[str], num_images: int) -> list[str]:
    """Bring prompts to a list with one prompt for each image.

    Args:
        prompts: one string, used for all images, or a list or tuple of `num_images` strings.
        num_images: number of images.

    Raises:
        TypeError: when a prompt is not a string.
        ValueError: when the counts differ, or a prompt holds half of a character.

    Example:
        >>> prompt_list("a star", 2)
        ['a star', 'a star']
    """
    if isinstance(prompts, str):
        require_text([prompts], "prompts")
        return [prompts] * num_images
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"prompts must be a string or a list of strings, got {type(prompts).__name__}.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts[{index}] must be a string, got {type(prompt).__name__}.")
    require_text(prompts, "prompts")
    if len(prompts) != num_images:
        raise ValueError(
            f"Expected one prompt for each of {num_images} images, got {len(prompts)} prompts. "
            "Give a plain string to score all images with the same prompt."
        )
    return list(prompts)


def _single(image: object, index: int) -> Tensor:
    if isinstance(image, Image.Image):
        return _from_pil(image, f"images[{index}]")[0]
    if isinstance(image, (torch.Tensor, np.ndarray)) and image.ndim != 3:
        raise ValueError(
            f"images[{index}] has shape {tuple(image.shape)}: the entries of a list must be single images; "
            "pass a batch by itself."
        )
    return _batch(image)[0]


def _batch(images: object) -> Tensor:
    if isinstance(images, Image.Image):
        return _from_pil(images, "the PIL image")
    if isinstance(images, np.ndarray):
        return _from_array(images)
    if isinstance(images, torch.Tensor):
        return _from_tensor(images)
    raise TypeError(
        "images must be a tensor (B, 3, H, W), an array (B, H, W, 3), a PIL image, or a list of single images, "
        f"got {type(images).__name__}."
    )


def _from_tensor(images: Tensor) -> Tensor:
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape[2:]:
        raise ValueError(f"A tensor of images must have shape (B, 3, H, W) or (3, H, W), got {tuple(images.shape)}.")
    return _checked_dtype(batch)


def _from_array(images: np.ndarray) -> Tensor:
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape[1:3]:
        raise ValueError(
            f"An array of images must have shape (B, H, W, 3) or (H, W, 3), got {images.shape}; "
            "for channels first pass a torch tensor."
        )
    if batch.dtype != np.uint8 and not np.issubdtype(batch.dtype, np.floating):
        raise TypeError(_dtype_message(batch.dtype))
    return _checked_dtype(torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2)).contiguous()


def _checked_dtype(batch: Tensor) -> Tensor:
    """Uint8 as it is, floating as float32."""
    if batch.dtype == torch.uint8:
        return batch
    if not batch.is_floating_point():
        raise TypeError(_dtype_message(batch.dtype))
    return batch.to(torch.float32)


def _dtype_message(dtype: object) -> str:
    return f"images must be floating point in [0, 1] or uint8 in 0..255, got {dtype}."


def _from_pil(image: Image.Image, name: str) -> Tensor:
    return _from_array(np.asarray(read_image(image, name=name)))


def _stack_equal_sizes(images: list[Tensor]) -> list[ImageGroup]:
    if len({image.device for image in images}) > 1:
        raise ValueError("images lie on several devices; move them to one.")
    places: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for index, image in enumerate(images):
        places.setdefault((image.shape, image.dtype), []).append(index)
    return [ImageGroup(torch.stack([images[i] for i in indices]), tuple(indices)) for indices in places.values()]


def _all_floating(groups: list[ImageGroup]) -> list[ImageGroup]:
    """The same as float32; an 8-bit and a floating group of one size become one."""
    if len({group.images.dtype for group in groups}) < 2:
        return [ImageGroup(unit_float(group.images), group.indices) for group in groups]
    placed = {i: unit_float(image) for group in groups for i, image in zip(group.indices, group.images, strict=True)}
    return _stack_equal_sizes([placed[i] for i in sorted(placed)])


def _check_range(group: ImageGroup) -> None:
    if group.images.dtype == torch.uint8:
        return  # cannot be outside
    # One transfer from the device a group; the image with the bad value is only looked for when there is one.
    low, high = torch.stack(torch.aminmax(group.images.detach())).tolist()
    if not np.isfinite([low, high]).all():
        bad = (~group.images.detach().isfinite().flatten(1).all(dim=1)).nonzero()[0].item()
        raise ValueError(f"images[{group.indices[int(bad)]}] has values that are not finite.")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}. "
            "Rescale first: images / 2 + 0.5 for a range of [-1, 1], images / 255 for 0..255."
        )
