"""LLaVA-NeXT's preprocessing against transformers' own processor of PIL pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlavaNextImageProcessorPil

from fk_reward.rewards.llava_reward.backbones.llava_next import AnyResTransform

STD = (0.26862954, 0.26130258, 0.27577711)
PIL_ROUNDING = 1.25 / 255  # two passes of the resizing, each rounded to 8 bits
SIZES = {"square": (16, 16), "crop": (8, 8), "wide": (11, 40), "tall": (51, 14), "tiny": (5, 6), "sliver": (2, 60),
         "odd margin": (13, 17)}  # fmt: skip


def config(crop_size: int) -> dict:
    grid = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    return {
        "crop_size": {"height": crop_size, "width": crop_size},
        "size": {"shortest_edge": crop_size},
        "image_grid_pinpoints": [[crop_size * height, crop_size * width] for height, width in grid],
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": list(STD),
        "resample": 3,
    }


def picture(size: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, a gradient and noise, so that neighbouring crops differ."""
    rows, columns = np.meshgrid(np.linspace(0, 120, size[0]), np.linspace(0, 90, size[1]), indexing="ij")
    noise = np.random.default_rng(seed).integers(0, 40, size=(*size, 3))
    return ((rows + columns)[..., None] + noise).astype(np.uint8)


def check_against_pil(transform: AnyResTransform, size: tuple[int, int]) -> None:
    image = picture(size)
    processor = LlavaNextImageProcessorPil(**config(transform.crop_size))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    pixel_values = transform(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
    scale = torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(pixel_values * scale, expected * scale, atol=PIL_ROUNDING, rtol=0)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_pixels_agree_with_pil(size: tuple[int, int]) -> None:
    check_against_pil(AnyResTransform.from_config(config(8)), size)


@pytest.mark.parametrize("size", [(512, 512), (200, 900)])
def test_pixels_agree_with_pil_at_the_real_crop_size(size: tuple[int, int]) -> None:
    check_against_pil(AnyResTransform.from_config(config(336)), size)


class ColumnMajor(AnyResTransform):
    def _cut(self, canvas: torch.Tensor) -> torch.Tensor:
        return super()._cut(canvas.transpose(1, 2)).transpose(2, 3)


class MarginAtTheEnd(AnyResTransform):
    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        canvas = super()._fit(image)
        return torch.roll(canvas, shifts=(-1, -1), dims=(1, 2))


class Distorted(AnyResTransform):
    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        return self._resize(image, tuple(super()._fit(image).shape[-2:]))


class GridFirst(AnyResTransform):
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return super().__call__(image).roll(-1, dims=0)


@pytest.mark.parametrize("saboteur", [ColumnMajor, MarginAtTheEnd, Distorted, GridFirst])
def test_the_comparison_sees_what_is_wrong(saboteur: type[AnyResTransform]) -> None:
    right = AnyResTransform.from_config(config(8))
    wrong = saboteur(crop_size=8, grid_pinpoints=right.grid_pinpoints, pixels=right.pixels)
    check_against_pil(right, SIZES["odd margin"])
    with pytest.raises(AssertionError):
        check_against_pil(wrong, SIZES["odd margin"])


def test_margins_are_black_before_normalisation() -> None:
    transform = AnyResTransform.from_config(config(8))
    crops = transform(torch.ones(3, 8, 40))  # 3 crops side by side, of which 24 x 5 pixels are picture
    black = -torch.tensor(transform.pixels.mean) / torch.tensor(transform.pixels.std)
    assert len(crops) == 4
    torch.testing.assert_close(crops[1:, :, 0], black.view(1, 3, 1).expand(3, 3, 8))
    torch.testing.assert_close(crops[1:, :, -2:], black.view(1, 3, 1, 1).expand(3, 3, 2, 8))


def test_gradient_agrees_with_finite_differences() -> None:
    transform = AnyResTransform.from_config(config(4))
    image = 0.3 + 0.4 * torch.rand(3, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(transform, (image.requires_grad_(),))


@pytest.mark.parametrize("changes", [
    {"crop_size": {"height": 8, "width": 16}},
    {"size": {"shortest_edge": 16}},
    {"do_center_crop": False},
    {"do_resize": False},
    {"do_rescale": False},
])  # fmt: skip
def test_a_processor_that_does_something_else_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="size|rescale"):
        AnyResTransform.from_config(config(8) | changes)


@pytest.mark.parametrize("grid", [(), ((8, 12),), ((0, 8),)])
def test_a_grid_that_cannot_be_cut_is_refused(grid: tuple) -> None:
    transform = AnyResTransform.from_config(config(8))
    with pytest.raises(ValueError, match="multiples of crop_size=8"):
        dataclasses.replace(transform, grid_pinpoints=grid)
