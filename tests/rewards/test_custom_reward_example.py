"""The reward of examples/custom_reward.py against the formula written in NumPy, and the script itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "custom_reward.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("custom_reward_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equals_the_published_formula(example):
    arrays = np.random.default_rng(0).random((3, 8, 9, 3))
    red, green, blue = np.moveaxis(arrays, -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    axes = (1, 2)
    expected = np.hypot(rg.std(axes), yb.std(axes)) + 0.3 * np.hypot(rg.mean(axes), yb.mean(axes))
    np.testing.assert_allclose(example.Colourfulness()(arrays, "any"), expected, rtol=1e-5)


def test_grey_has_no_colour(example):
    assert example.Colourfulness()(torch.full((1, 3, 4, 4), 0.3), "any").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_script_runs(example, tmp_path):
    rewards = example.main(num_particles=2, steps=5, out=tmp_path / "best.png")
    assert rewards.shape == (1, 2)
    assert rewards[0, 0] >= rewards[0, 1]
    assert (tmp_path / "best.png").stat().st_size > 0
