"""The HD transform against the official formulas, written out here, and against PIL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fk_reward.rewards.llava_reward.backbones.phi3_vision import CLIP_MEAN, CLIP_STD, HDTransform
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import PhiImageEmbedding, PhiVisionConfig
from tests.tiny import phi3_vision

SIDES = (64, 65, 100, 128, 200, 255, 333, 336, 337, 500, 512, 640, 671, 768, 1000, 1024, 1344, 1536, 1920, 2048)
SHAPES = ((40, 40), (30, 75), (75, 30), (61, 43), (28, 84), (120, 110), (7, 61))


def official_size(height, width, num_crops):
    """Height and width after padding, as the official processor computes them."""
    if width < height:
        return official_size(width, height, num_crops)[::-1]
    scale = 1
    while scale * math.ceil(scale / (width / height)) <= num_crops:
        scale += 1
    new_width = (scale - 1) * 336
    return math.ceil(int(new_width / (width / height)) / 336) * 336, new_width


def official_num_tokens(height, width):
    return (height // 336 * (width // 336) + 1) * 144 + 1 + (height // 336 + 1) * 12


def official_crops(pixels, *, num_crops, size):
    """The processor's path through PIL, crop by crop; pixels (H, W, 3) uint8, result in units of [0, 1]."""
    image = Image.fromarray(pixels)
    portrait = image.width < image.height
    image = image.transpose(Image.Transpose.TRANSPOSE) if portrait else image
    ratio = image.width / image.height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    width = (scale - 1) * size
    height = int(width / ratio)
    canvas = Image.new("RGB", (width, math.ceil(height / size) * size), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, int((canvas.height - height) / 2)))
    canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if portrait else canvas
    whole = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None] / 255
    crops = [functional.interpolate(whole, (size, size), mode="bicubic")[0]]
    for top in range(0, canvas.height, size):
        crops += [whole[0, :, top : top + size, left : left + size] for left in range(0, canvas.width, size)]
    return torch.stack(crops)


def check_against_pil(transform, *, height, width):
    """In units of the input: PIL rounds twice, by 1/2 each; bicubic weights can enlarge that in the global crop."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crops = transform(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    crops = crops * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    expected = official_crops(pixels, num_crops=transform.num_crops, size=transform.crop_size)
    assert crops.shape == expected.shape
    error = 255 * (crops - expected).abs()
    assert error[1:].max() <= 1.01
    assert error[0].max() <= 1.9
    assert error.mean() <= 0.45


@pytest.fixture(scope="module")
def full_size_embedding():
    """The image embedding of the hub's size, without storage."""
    processor = {**phi3_vision.CONFIG["img_processor"], "image_dim_out": 1024}
    config = PhiVisionConfig(img_processor=processor, embd_layer=phi3_vision.CONFIG["embd_layer"])
    with torch.device("meta"):
        return PhiImageEmbedding(config)


@pytest.mark.parametrize("num_crops", range(1, 17))
def test_sizes_and_numbers_of_tokens_follow_the_official_formulas(num_crops, full_size_embedding):
    transform = HDTransform(num_crops=num_crops)
    for height in SIDES:
        for width in SIDES:
            padded = official_size(height, width, num_crops)
            rows, columns = transform.grid(height, width)
            assert (rows * 336, columns * 336) == padded, (height, width)
            assert rows * columns <= num_crops
            assert full_size_embedding.num_tokens(rows, columns) == official_num_tokens(*padded)


@pytest.mark.parametrize(("num_crops", "tokens"), [(16, 2509), (4, 757)])
def test_known_numbers_of_tokens_of_a_square_image(num_crops, tokens, full_size_embedding):
    grid = HDTransform(num_crops=num_crops).grid(1024, 1024)
    assert full_size_embedding.num_tokens(*grid) == tokens


def test_portrait_is_the_mirror_of_landscape():
    transform = HDTransform(num_crops=6)
    assert transform.resized_shape(1000, 700) == transform.resized_shape(700, 1000)[::-1] == (672, 470)
    assert transform.grid(1000, 700) == (2, 2)
    assert transform.grid(2000, 700) == (3, 2)


@pytest.mark.parametrize("num_crops", [1, 4, 6, 16])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_crops_agree_with_pil(height, width, num_crops):
    check_against_pil(HDTransform(num_crops=num_crops, crop_size=28), height=height, width=width)


@pytest.mark.parametrize(("height", "width", "num_crops"), [(300, 451, 4), (700, 400, 5)])
def test_crops_of_the_real_size_agree_with_pil(height, width, num_crops):
    check_against_pil(HDTransform(num_crops=num_crops), height=height, width=width)


class CropsByColumn(HDTransform):
    def __call__(self, image):
        crops = super().__call__(image)
        rows, columns = self.grid(*image.shape[-2:])
        return torch.cat([crops[:1], crops[1:].unflatten(0, (rows, columns)).transpose(0, 1).flatten(0, 1)])


class RotatedPortraits(HDTransform):
    def __call__(self, image):
        return super().__call__(image.rot90(dims=(1, 2))).rot90(-1, dims=(2, 3))


class GlobalCropFirstOfAll(HDTransform):
    def __call__(self, image):
        crops = super().__call__(image)
        small = functional.interpolate(image[None], (self.crop_size,) * 2, mode="bicubic", antialias=True)
        return torch.cat([self._normalize(small), crops[1:]])


class BlackPadding(HDTransform):
    def _pad(self, image):
        return 1 - super()._pad(1 - image)


class AliasedResize(HDTransform):
    def _resize(self, image):
        return functional.interpolate(image, self.resized_shape(*image.shape[-2:]), mode="bilinear")


@pytest.mark.parametrize(
    "saboteur", [CropsByColumn, RotatedPortraits, GlobalCropFirstOfAll, BlackPadding, AliasedResize]
)
def test_the_check_against_pil_rejects(saboteur):
    with pytest.raises(AssertionError):
        check_against_pil(saboteur(num_crops=6, crop_size=28), height=120, width=70)


def test_gradients_of_the_transform():
    transform = HDTransform(num_crops=4, crop_size=4)
    image = torch.rand(3, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert transform.grid(9, 5) == (2, 1)
    assert torch.autograd.gradcheck(transform, (image,))


def test_dtype_is_kept():
    assert HDTransform(num_crops=1, crop_size=8)(torch.rand(3, 9, 9, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("num_crops", [0, -1])
def test_a_budget_without_crops_is_refused(num_crops):
    with pytest.raises(ValueError, match="num_crops must be at least 1"):
        HDTransform(num_crops=num_crops)


def test_an_image_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match="1 x 9000 pixels is too elongated"):
        HDTransform(num_crops=16).grid(1, 9000)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_one_size_may_be_cut_together(shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    transform = HDTransform(num_crops=4, crop_size=28)
    assert torch.equal(transform.batch(images), torch.stack([transform(image) for image in images]))
