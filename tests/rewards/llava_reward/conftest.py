"""Tiny random-weight backbones in the hub's layout, official checkpoints for them, and images of several sizes."""

from __future__ import annotations

import pytest
import torch

from tests.tiny.llava_reward import WRITERS, write_tiny


@pytest.fixture(scope="session", params=WRITERS)
def tiny(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def phi(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("phi"), "phi3_v")


def coarse_image(height, width, seed):
    """(3, H, W) in [0, 1]: coarse random colours, so that a change of size keeps most of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.fixture(scope="session")
def mixed():
    """Four images of different sizes with prompts of different lengths."""
    sizes = [(64, 64), (40, 90), (120, 50), (64, 64)]
    images = [coarse_image(*size, seed) for seed, size in enumerate(sizes)]
    return images, ["a red circle", "two squares", "a photo of a green star left of a blue cross", "a"]


@pytest.fixture(scope="session")
def batch():
    """Three images (3, 3, 64, 64) and one prompt for each."""
    return torch.stack([coarse_image(64, 64, seed) for seed in range(3)]), ["a red circle", "two squares", "a star"]
