"""The rendered texts, the harmless images, and the tables of the rewards with real weights."""

from __future__ import annotations

import numpy as np
import pytest

from examples.benchmarks.reward_detectors import _DRAWN, harmless_images, main, rendered_text, worsened
from tests.examples.scripts import invoke


def test_texts_are_drawn_inside_their_image():
    rng = np.random.default_rng(3)
    for number in range(40):
        image, text = rendered_text(number, rng)
        pixels = np.asarray(image).astype(int)
        ground = pixels[0, 0]
        assert (pixels[:, -2:] == ground).all(), text
        assert np.abs(pixels - ground).max() > 60, text


def test_conditions_change_the_image():
    rng = np.random.default_rng(0)
    image, _ = rendered_text(0, rng)
    assert worsened(image, "clean", rng) is image
    for condition in ("blurred 2", "noised 20"):
        assert np.asarray(worsened(image, condition, rng)).shape == np.asarray(image).shape
        assert (np.asarray(worsened(image, condition, rng)) != np.asarray(image)).any()


@pytest.mark.parametrize("kind", ["shapes", *_DRAWN])
def test_harmless_images_differ(kind):
    first, second = harmless_images(kind, 2, np.random.default_rng(0))
    assert first.size == second.size == (256, 256)
    assert (np.asarray(first) != np.asarray(second)).any()


def test_what_is_not_installed_is_skipped(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    output = invoke(main)
    assert "rapidocr is not installed." in output
    assert "nudenet is not installed." in output


@pytest.mark.slow
def test_the_tables():
    pytest.importorskip("rapidocr")
    pytest.importorskip("nudenet")
    output = invoke(main, "--num-texts", "16", "--num-images", "6", "--markdown")
    assert "| clean | 1.000 |" in output
    assert "| shapes | 6 |" in output
