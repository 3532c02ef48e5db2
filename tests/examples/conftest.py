"""A tiny pipeline for the populations on the shapes model."""

from __future__ import annotations

import pytest

from examples.benchmarks import shapes_populations
from examples.benchmarks.overhead import mean_pixel
from fk_reward import FKSteeringPipeline
from tests.examples.shapes_stage import REWARDS, looks_bright


@pytest.fixture
def pipe(monkeypatch, tiny_sd):
    monkeypatch.setattr(shapes_populations, "verify", looks_bright)
    monkeypatch.setattr(shapes_populations, "shows_forbidden_sign", lambda image: bool(image.mean() < 0.5))
    wrapped = FKSteeringPipeline(tiny_sd(), reward=mean_pixel)
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


@pytest.fixture
def offline(monkeypatch, pipe):
    """The scripts get the tiny pipeline and rewards that need no model."""

    def from_pretrained(name, *, reward):
        return pipe

    monkeypatch.setattr(FKSteeringPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(shapes_populations, "load_reward", REWARDS.__getitem__)
