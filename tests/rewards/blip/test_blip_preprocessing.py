"""Tensor preprocessing against PIL's resizing and torchvision's crop."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import ImagePreprocessing
from fk_reward.rewards.preprocessing import TorchvisionPreprocessing
from tests.rewards.blip.reference import CLIP_MEAN, CLIP_STD, pil_pixels, to_pil

TOLERANCE = 2 / 255  # before normalisation: PIL rounds to 8 bits after each of its two passes
SHAPES = [(512, 512), (300, 480), (511, 333), (224, 227), (227, 224), (224, 225), (40, 57), (230, 701), (64, 64)]


def picture(shape):
    """Saturated noise in blocks, the hard edges of which overshoot."""
    blocks = torch.rand(1, 3, shape[0] // 3 + 1, shape[1] // 3 + 1, generator=torch.Generator().manual_seed(0)).round()
    large = blocks.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    return large[..., : shape[0], : shape[1]].contiguous()


def check_equals_pil(preprocessing, shape):
    image = picture(shape)
    pixels = preprocessing(image)[0] * CLIP_STD + CLIP_MEAN
    assert_close(pixels, pil_pixels(to_pil(image[0]), 224), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_pil(shape):
    check_equals_pil(TorchvisionPreprocessing.of_clip(224), shape)


@pytest.mark.parametrize("shape", [(224, 227), (227, 224)], ids=str)
def test_the_crop_of_transformers_is_noticed(shape):
    with pytest.raises(AssertionError):
        check_equals_pil(ImagePreprocessing.from_config({"size": 224, "crop_size": 224}), shape)


def test_a_crop_that_does_not_fit_raises():
    preprocessing = TorchvisionPreprocessing(size=8, crop_size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(ValueError, match="does not fit"):
        preprocessing(torch.zeros(1, 3, 8, 20))
    whole = TorchvisionPreprocessing(size=8, crop_size=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert whole(torch.zeros(1, 3, 16, 32)).shape == (1, 3, 8, 16)
