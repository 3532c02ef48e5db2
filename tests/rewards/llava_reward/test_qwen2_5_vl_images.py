"""Qwen's preprocessing on tensors against transformers' PIL processor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import PatchTransform, smart_resize
from tests.tiny.qwen2_5_vl import PREPROCESSOR

MAX_DIFFERENCE = 1.25 / 255  # before normalisation: PIL rounds to 8 bits after each of its two passes
MEAN_DIFFERENCE = 0.35 / 255

SHAPES = {
    "tiny": (9, 13),
    "square": (200, 200),
    "wide": (61, 480),
    "tall": (333, 40),
    "exact": (84, 112),
    "one side fits": (140, 333),
}
LIMITS = [(3136, 12845056), (256 * 28**2, 1280 * 28**2), (3136, 16 * 28**2), (1, 28**2)]


def picture(shape, kind):
    """Smooth colours, or noise of saturated pixels, the worst case for overshoot."""
    height, width = shape
    if kind == "noise":
        return (np.random.default_rng(0).integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 31 + phase) * np.cos(columns / 17 + phase) for phase in (0.0, 1.0, 2.0)]
    return (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def oracle(array, config):
    from transformers import Qwen2VLImageProcessorPil

    output = Qwen2VLImageProcessorPil(**config)(Image.fromarray(array), return_tensors="pt")
    return output["pixel_values"], tuple(output["image_grid_thw"][0, 1:].tolist())


def differences(transform, array, config):
    """Largest and mean absolute difference of the patches in units of [0, 1], before normalisation."""
    patches, grid = transform(tensor(array))
    expected, expected_grid = oracle(array, config)
    assert grid == expected_grid
    assert patches.shape == expected.shape
    std = torch.tensor(config["image_std"]).view(1, 3, 1)
    difference = ((patches - expected).unflatten(1, (3, -1)) * std).abs()
    return difference.max().item(), difference.mean().item()


@pytest.mark.parametrize(("min_pixels", "max_pixels"), LIMITS)
def test_smart_resize_is_transformers(min_pixels, max_pixels):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    settings = {"factor": 28, "min_pixels": min_pixels, "max_pixels": max_pixels}
    sides = [1, 7, 13, 14, 15, 28, 42, 70, 99, 196, 320, 333, 512, 1000, 1024, 3000, 5001]
    sizes = [(height, width) for height in sides for width in sides if max(height, width) <= 200 * min(height, width)]
    assert [smart_resize(*size, **settings) for size in sizes] == [expected(*size, **settings) for size in sizes]


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_pil_processor(shape, kind):
    largest, mean = differences(PatchTransform.from_config(PREPROCESSOR), picture(shape, kind), PREPROCESSOR)
    assert largest <= MAX_DIFFERENCE
    assert mean <= MEAN_DIFFERENCE


@pytest.mark.parametrize("limits", [{"min_pixels": 256 * 28**2}, {"max_pixels": 12 * 28**2}], ids=str)
def test_overridden_limits_agree_with_the_pil_processor(limits):
    transform = PatchTransform.from_config(PREPROCESSOR, **limits)
    largest, _ = differences(transform, picture((200, 150), "smooth"), PREPROCESSOR | limits)
    assert largest <= MAX_DIFFERENCE


def test_other_sizes_agree_too():
    config = PREPROCESSOR | {"patch_size": 8, "temporal_patch_size": 3, "merge_size": 3, "image_mean": [0.5, 0.4, 0.3]}
    largest, _ = differences(PatchTransform.from_config(config), picture((100, 161), "smooth"), config)
    assert largest <= MAX_DIFFERENCE


class RowByRow(PatchTransform):
    """Patches in reading order, not square by square."""

    def _patches(self, pixels):
        tiles = pixels.unflatten(2, (-1, self.patch_size)).unflatten(1, (-1, self.patch_size)).permute(1, 3, 0, 2, 4)
        return tiles.unsqueeze(3).expand(-1, -1, -1, self.temporal_patch_size, -1, -1).flatten(2).flatten(0, 1)


class ColoursLast(PatchTransform):
    """The pixels of a patch before its colours."""

    def _patches(self, pixels):
        return super()._patches(pixels).unflatten(1, (3, -1)).transpose(1, 2).flatten(1)


@pytest.mark.parametrize("saboteur", [RowByRow, ColoursLast], ids=lambda saboteur: saboteur.__name__)
def test_a_wrong_order_is_noticed(saboteur):
    largest, _ = differences(saboteur.from_config(PREPROCESSOR), picture((84, 112), "smooth"), PREPROCESSOR)
    assert largest > MAX_DIFFERENCE


def test_a_wrong_filter_is_noticed():
    transform = PatchTransform.from_config(PREPROCESSOR | {"resample": 2})
    largest, _ = differences(transform, picture((200, 150), "noise"), PREPROCESSOR)
    assert largest > MAX_DIFFERENCE


def test_gradient_agrees_with_finite_differences():
    transform = PatchTransform.from_config({"min_pixels": 1, "max_pixels": 64, "patch_size": 2})
    image = 0.3 + 0.4 * torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda pixels: transform(pixels)[0], image.requires_grad_())


def test_dtype_is_kept():
    assert (
        PatchTransform.from_config(PREPROCESSOR)(torch.ones(3, 60, 60, dtype=torch.float64))[0].dtype == torch.float64
    )


@pytest.mark.parametrize(
    "config",
    [
        {"min_pixels": 784, "max_pixels": 78400},
        {"size": {"shortest_edge": 784, "longest_edge": 78400}},
        {"size": {"shortest_edge": 784, "longest_edge": 78400}, "min_pixels": None, "max_pixels": None},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 784, "max_pixels": 78400},
    ],
    ids=["hub", "newer form", "newer form with nulls", "both"],
)
def test_reads_each_form_of_the_limits(config):
    transform = PatchTransform.from_config(config)
    assert (transform.min_pixels, transform.max_pixels) == (784, 78400)


def test_a_silent_configuration_has_the_library_s_limits():
    from transformers import Qwen2VLImageProcessorPil

    transform, size = PatchTransform.from_config({}), Qwen2VLImageProcessorPil().size
    assert (transform.min_pixels, transform.max_pixels) == (size["shortest_edge"], size["longest_edge"])


def test_reads_the_files_that_transformers_writes(tmp_path):
    from transformers import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(**PREPROCESSOR).save_pretrained(tmp_path)
    expected = PatchTransform.from_config(PREPROCESSOR)
    assert PatchTransform.from_pretrained(tmp_path) == expected
    assert PatchTransform.from_pretrained(tmp_path, min_pixels=9).min_pixels == 9


def test_reads_a_nested_processor_config(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR}))
    assert PatchTransform.from_pretrained(tmp_path) == PatchTransform.from_config(PREPROCESSOR)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "1/255"),
        ({"resample": 0}, "resample"),
        ({"size": {"shortest_edge": 3136}}, "longest_edge"),
        ({"min_pixels": 28**2, "max_pixels": 1}, "min_pixels <= max_pixels"),
        ({"min_pixels": 0}, "0 < min_pixels"),
    ],
)
def test_unsupported_settings_raise(config, message):
    with pytest.raises(ValueError, match=message):
        PatchTransform.from_config(config)


def test_a_sliver_raises():
    transform = PatchTransform.from_config(PREPROCESSOR)
    assert transform(torch.ones(3, 2, 400))[1] == (2, 58)  # 28 x 812 pixels
    with pytest.raises(ValueError, match="factor of at most 200, got 2x401"):
        transform(torch.ones(3, 2, 401))
