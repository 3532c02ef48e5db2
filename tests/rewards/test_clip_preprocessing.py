"""Tensor preprocessing against transformers' PIL processor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fk_reward.rewards import ImagePreprocessing

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
