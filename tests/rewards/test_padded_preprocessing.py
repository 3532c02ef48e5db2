"""Preprocessing of HPS against PIL, and against the official arithmetic on tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fk_reward.rewards.preprocessing import PaddedPreprocessing

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHAPES = {
    "landscape": (300, 480),
    "portrait": (511, 333),
    "square": (512, 512),
    "small": (40, 57),
    "odd borders": (101, 224),
    "thin": (1000, 30),
    "one pixel": (1, 1),
}
PREPROCESS = PaddedPreprocessing(size=SIZE, mean=MEAN, std=STD)


def waves(shape):
    """Short waves in the middle of the range: no overshoot, which PIL would clip and the official code does not."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    layers = [np.sin(rows / 4 + phase) * np.cos(columns / 3 + phase) for phase in (0.0, 1.0, 2.0)]
    return (127.5 + 80 * np.stack(layers, axis=-1)).round().astype(np.uint8)


def pil_oracle(array):
    """The same picture by PIL alone, in [0, 1]: longer side to SIZE, pasted into the middle of a black square."""
    picture = Image.fromarray(array)
    scale = SIZE / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    square = Image.new("RGB", (SIZE, SIZE))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((SIZE - width) // 2, (SIZE - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255


def largest_difference(preprocess, array):
    image = torch.from_numpy(array).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((preprocess(image)[0] * std + mean) - pil_oracle(array)).abs().max().item()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_pil(shape):
    assert largest_difference(PREPROCESS, waves(shape)) <= 2 / 255


def cropped(images):
    scale = SIZE / min(images.shape[-2:])
    images = functional.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True)[..., :SIZE, :SIZE]
    return PREPROCESS(images)


SABOTEURS = {
    "no antialiasing": PaddedPreprocessing(size=SIZE, mean=MEAN, std=STD, antialias=False),
    "cropped": cropped,
    "stretched": lambda images: PREPROCESS(functional.interpolate(images, (SIZE, SIZE))),
    "grey borders": lambda images: functional.pad(PREPROCESS(images)[..., 80:-80, :], (0, 0, 80, 80)),
    "border on the other side": lambda images: PREPROCESS(images.flip(-2)).flip(-2),
}


@pytest.mark.parametrize("saboteur", SABOTEURS.values(), ids=SABOTEURS)
def test_a_wrong_preprocessing_is_noticed(saboteur):
    assert largest_difference(saboteur, waves((303, 481))) > 2 / 255


def test_overshoot_stays_as_in_the_official_code():
    edge = torch.zeros(1, 3, 448, 448)
    edge[..., 200:] = 1
    plain = PaddedPreprocessing(size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3)(edge)
    assert plain.min() < -0.01
    assert plain.max() > 1.01


def test_without_antialiasing_it_is_the_plain_filter():
    comb = torch.zeros(1, 3, 448, 448)
    comb[..., ::4] = 1
    without = PaddedPreprocessing(size=SIZE, mean=MEAN, std=STD, antialias=False)
    expected = functional.interpolate(comb, (SIZE, SIZE), mode="bicubic", antialias=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(without(comb), (expected - mean) / std)
    assert (without(comb) - PREPROCESS(comb)).abs().max() > 0.5


def test_a_batch_is_its_images():
    images = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PREPROCESS(images), torch.cat([PREPROCESS(image[None]) for image in images]))


def test_gradient_agrees_with_finite_differences():
    preprocess = PaddedPreprocessing(size=5, mean=MEAN, std=STD)
    images = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(preprocess, images.requires_grad_())
