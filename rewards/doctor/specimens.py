"""Images whose right order is known: rendered scenes of one object each, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.rewards.inputs import Images, in_order, prompt_list
from fk_reward.shapes import Scene, SceneObject, render

DRAWN = (
    ("red", "circle"),
    ("blue", "square"),
    ("green", "triangle"),
    ("yellow", "star"),
    ("purple", "cross"),
    ("orange", "diamond"),
)
"""Colour and shape of each drawn specimen. No two share one of them, so that every other prompt is wrong in both."""

_DRAWN_SIDE = 64


@dataclass(frozen=True)
class Specimens:
    """Images and the prompts that they show.

    Attributes:
        images: (N, 3, H, W) float32 in [0, 1]; multiples of 1/255, so that they are the same as 8-bit images.
        prompts: N strings; no prompt may be true of another one's image.
        worse: (N, 3, H, W), for each image one that is known to deserve a lower score for its prompt; None where none
            is known.

    Raises:
        ValueError: when there are fewer than two images, counts or sizes differ, or two prompts are equal.

    N: number of specimens, H, W: height and width.
    """

    images: Tensor
    prompts: tuple[str, ...]
    worse: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.images) < 2 or len(self.images) != len(self.prompts):
            raise ValueError(
                f"Expected at least two images with a prompt each, got {len(self.images)} images and "
                f"{len(self.prompts)} prompts."
            )
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError("Expected another prompt for each image: prompts are swapped among them.")
        if self.worse is not None and self.worse.shape != self.images.shape:
            raise ValueError(
                f"Expected one worse image of the same size for each image, got {tuple(self.worse.shape)} for "
                f"{tuple(self.images.shape)}."
            )

    @classmethod
    def of(cls, images: Images, prompts: Sequence[str], *, worse: Images | None = None) -> Specimens:
        """Take the user's own images, all of one size.

        Args:
            images: N images, as for `Reward.__call__`.
            prompts: N strings.
            worse: N images.

        Raises:
            ValueError: as the class, and for images of several sizes.
        """
        given = [_stacked(images), None if worse is None else _stacked(worse)]
        return cls(given[0], tuple(prompt_list(list(prompts), len(given[0]))), given[1])  # type: ignore[arg-type]

    @property
    def shifts(self) -> range:
        """How far prompts are moved among the images, to have up to three wrong ones for each."""
        return range(1, min(len(self.prompts), 4))

    def swapped(self, shift: int) -> list[str]:
        """The prompts, each at the image that stands `shift` places before its own."""
        return [*self.prompts[shift:], *self.prompts[:shift]]


def drawn_specimens(side: int = 512) -> Specimens:
    """Render scenes of one coloured shape each.

    Args:
        side: of the images in pixels; 64 is what the rewards of the shapes world are made for.

    Example:
        >>> specimens = drawn_specimens(64)
        >>> specimens.images.shape, specimens.prompts[0]
        (torch.Size([6, 3, 64, 64]), 'a photo of a red circle')
    """
    scenes = [Scene((SceneObject(shape, color, x=0.5, y=0.5, size=0.25),)) for color, shape in DRAWN]
    images = render(scenes, image_size=side)
    article = {color: "an" if color[0] in "aeiou" else "a" for color, _ in DRAWN}
    prompts = tuple(f"a photo of {article[color]} {color} {shape}" for color, shape in DRAWN)
    return Specimens(_eight_bit(images), prompts)


def blurred(images: Tensor) -> Tensor:
    """Blur images until little but colour is left: to a sixteenth of their size and back, in [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    small = tuple(max(side // 16, 1) for side in images.shape[-2:])
    reduced = functional.interpolate(images, small, mode="area")
    return _eight_bit(functional.interpolate(reduced, images.shape[-2:], mode="bilinear", align_corners=False))


def noise(images: Tensor, *, seed: int = 0) -> Tensor:
    """Uniform noise, the same for the same shape and seed.

    Args:
        images: of whose shape it is.
        seed: of the random numbers.
    """
    return _eight_bit(torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)))


def _stacked(images: Images) -> Tensor:
    singles = list(in_order(images))
    if len({image.shape for image in singles}) != 1:
        raise ValueError(f"Expected images of one size, got {sorted({tuple(image.shape[-2:]) for image in singles})}.")
    return _eight_bit(torch.stack(singles).cpu())


def _eight_bit(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255) / 255
