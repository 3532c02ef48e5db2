"""Tensor preprocessing against transformers' PIL processor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.testing import assert_close

from fk_reward.rewards import ImagePreprocessing
from fk_reward.rewards.preprocessing import PaddedPreprocessing, TorchvisionPreprocessing
from tests.tiny.imagereward_reference import CLIP_MEAN, CLIP_STD, pil_pixels, to_pil

MAX_DIFFERENCE = 1.25 / 255  # before normalisation: PIL rounds to 8 bits after each of its two passes
MEAN_DIFFERENCE = 0.35 / 255

SHAPES = {
    "landscape": (300, 480),
    "portrait": (511, 333),
    "square": (512, 512),
    "small": (40, 57),
    "large": (1024, 1536),
    "same size": (224, 224),
    "one side fits": (224, 301),
    "odd": (231, 227),
}


def picture(shape, kind):
    """Smooth colours, hard edges of a checkerboard, or noise of saturated pixels, the worst case for overshoot."""
    height, width = shape
    rng = np.random.default_rng(0)
    if kind == "noise":
        return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    if kind == "checkerboard":
        return np.repeat((((rows // 7 + columns // 5) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    waves = [np.sin(rows / 31 + phase) * np.cos(columns / 17 + phase) for phase in (0.0, 1.0, 2.0)]
    return (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def oracle(array, config):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**config)
    return torch.as_tensor(np.stack(processor(Image.fromarray(array), return_tensors="np")["pixel_values"]))


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 255


def differences(preprocess, array, config):
    """Largest and mean absolute difference in units of [0, 1], before normalisation."""
    std = torch.tensor(config.get("image_std", (0.26862954, 0.26130258, 0.27577711))).view(1, 3, 1, 1)
    difference = ((preprocess(tensor(array)) - oracle(array, config)) * std).abs()
    return difference.max().item(), difference.mean().item()


@pytest.mark.parametrize("kind", ["smooth", "checkerboard", "noise"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
def test_agrees_with_the_pil_processor(shape, kind, resample):
    config = {"resample": resample}
    largest, mean = differences(ImagePreprocessing.from_config(config), picture(shape, kind), config)
    assert largest <= MAX_DIFFERENCE
    assert mean <= MEAN_DIFFERENCE


def without_antialias(images):
    images = functional.interpolate(images, (224, 344), mode="bicubic", align_corners=False).clamp(0, 1)[..., 60:284]
    return ImagePreprocessing.from_config({"do_resize": False})(images)


def one_pass(images):
    images = functional.interpolate(images, (224, 358), mode="bicubic", antialias=True).clamp(0, 1)[..., 67:291]
    return ImagePreprocessing.from_config({"do_resize": False})(images)


@pytest.mark.parametrize("saboteur", [without_antialias, one_pass, ImagePreprocessing.from_config({"resample": 2})])
def test_a_wrong_resizing_is_noticed(saboteur):
    largest, _ = differences(saboteur, picture((300, 480), "noise"), {})
    assert largest > MAX_DIFFERENCE


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 56}},
        {"size": {"height": 40, "width": 72}, "do_center_crop": False},
        {"size": 64, "crop_size": 63, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    ],
    ids=["rectangular crop", "exact size", "older form, odd crop"],
)
def test_other_settings_agree_too(config):
    largest, _ = differences(ImagePreprocessing.from_config(config), picture((100, 161), "smooth"), config)
    assert largest <= MAX_DIFFERENCE


def test_no_normalisation():
    config = {"do_normalize": False, "image_std": [1.0, 1.0, 1.0]}
    largest, _ = differences(ImagePreprocessing.from_config(config), picture((300, 200), "smooth"), config)
    assert largest <= MAX_DIFFERENCE


def test_a_batch_is_its_images():
    preprocess = ImagePreprocessing.from_config({"size": 32, "crop_size": 32})
    images = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(preprocess(images), torch.cat([preprocess(image[None]) for image in images]))


def test_gradient_agrees_with_finite_differences():
    preprocess = ImagePreprocessing.from_config({"size": 4, "crop_size": 4})
    images = 0.3 + 0.4 * torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(preprocess, images.requires_grad_())


def test_reads_the_file_that_transformers_writes(tmp_path):
    from transformers import CLIPImageProcessorPil

    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    expected = ImagePreprocessing.from_config({"size": 64, "crop_size": 64})
    assert ImagePreprocessing.from_pretrained(tmp_path) == expected


def test_reads_a_nested_processor_config(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 64, "crop_size": 64}}))
    assert ImagePreprocessing.from_pretrained(tmp_path).size == 64


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(OSError, match="preprocessor_config"):
        ImagePreprocessing.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resample": 1}, "resample"),
        ({"resample": 0}, "resample"),
        ({"rescale_factor": 1.0}, "1/255"),
        ({"do_rescale": False}, "1/255"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"crop_size": {"shortest_edge": 224}}, "shortest_edge"),
    ],
)
def test_unsupported_settings_raise(config, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessing.from_config(config)


def test_a_crop_that_does_not_fit_raises():
    with pytest.raises(ValueError, match="does not fit"):
        ImagePreprocessing.from_config({"size": 32, "crop_size": 48})(torch.rand(1, 3, 40, 40))


SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PADDED_SHAPES = {
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


@pytest.mark.parametrize("shape", PADDED_SHAPES.values(), ids=PADDED_SHAPES)
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


def test_a_padded_batch_is_its_images():
    images = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PREPROCESS(images), torch.cat([PREPROCESS(image[None]) for image in images]))


def test_gradient_of_padding_agrees_with_finite_differences():
    preprocess = PaddedPreprocessing(size=5, mean=MEAN, std=STD)
    images = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(preprocess, images.requires_grad_())


TOLERANCE = 2 / 255  # before normalisation: PIL rounds to 8 bits after each of its two passes
TORCHVISION_SHAPES = [
    (512, 512),
    (300, 480),
    (511, 333),
    (224, 227),
    (227, 224),
    (224, 225),
    (40, 57),
    (230, 701),
    (64, 64),
]


def noise_image(shape):
    """Saturated noise in blocks, the hard edges of which overshoot."""
    blocks = torch.rand(1, 3, shape[0] // 3 + 1, shape[1] // 3 + 1, generator=torch.Generator().manual_seed(0)).round()
    large = blocks.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    return large[..., : shape[0], : shape[1]].contiguous()


def check_equals_pil(preprocessing, shape):
    image = noise_image(shape)
    pixels = preprocessing(image)[0] * CLIP_STD + CLIP_MEAN
    assert_close(pixels, pil_pixels(to_pil(image[0]), 224), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", TORCHVISION_SHAPES, ids=str)
def test_equals_pil(shape):
    check_equals_pil(TorchvisionPreprocessing.of_clip(224), shape)


@pytest.mark.parametrize("shape", [(224, 227), (227, 224)], ids=str)
def test_the_crop_of_transformers_is_noticed(shape):
    with pytest.raises(AssertionError):
        check_equals_pil(ImagePreprocessing.from_config({"size": 224, "crop_size": 224}), shape)


def test_a_crop_of_torchvision_that_does_not_fit_raises():
    preprocessing = TorchvisionPreprocessing(size=8, crop_size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(ValueError, match="does not fit"):
        preprocessing(torch.zeros(1, 3, 8, 20))
    whole = TorchvisionPreprocessing(size=8, crop_size=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert whole(torch.zeros(1, 3, 16, 32)).shape == (1, 3, 8, 16)
