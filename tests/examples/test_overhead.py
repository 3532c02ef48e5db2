"""The overhead benchmark on a tiny random model: what is measured, not how fast it is."""

from __future__ import annotations

import json

import pytest

from examples.benchmarks import overhead
from examples.benchmarks.overhead import Repetition
from fk_reward import FKSteeringPipeline


@pytest.fixture
def pipe(tiny_sd):
    wrapped = FKSteeringPipeline(tiny_sd(), reward=overhead.mean_pixel)
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


def test_ratios():
    repetition = Repetition(stock=2.0, steered=3.0, decode=0.5, reward=0.25)
    assert repetition.total_ratio == 1.5
    assert repetition.steering_ratio == 1.125


def test_measure_times_pairs(pipe):
    repetitions = overhead.measure(pipe, prompt="a cat", num_particles=2, num_steps=6, num_repetitions=3)
    assert len(repetitions) == 3
    for repetition in repetitions:
        assert 0 < repetition.decode + repetition.reward < repetition.steered
        assert repetition.stock > 0


def test_summary_has_medians_and_quartiles():
    repetitions = [Repetition(stock=1.0, steered=x, decode=0.0, reward=0.0) for x in (1.0, 1.1, 1.2, 1.3, 9.0)]
    row = overhead.summarize(repetitions)[0]
    assert (row["median"], row["median_low"], row["median_high"]) == pytest.approx((1.2, 1.1, 1.3))


def test_a_wider_unet_still_serves_the_pipeline(pipe):
    before = sum(p.numel() for p in pipe.unet.parameters())
    overhead.widen_unet(pipe, 2)
    assert sum(p.numel() for p in pipe.unet.parameters()) > 2 * before
    assert len(pipe("a cat", num_particles=2, num_inference_steps=3).images) == 1


def test_main(monkeypatch, tmp_path, capsys, pipe):
    monkeypatch.setattr(FKSteeringPipeline, "from_pretrained", lambda name, *, reward: pipe)
    overhead.main(steps=4, num_particles=2, num_repetitions=2, out=tmp_path)
    content = json.loads((tmp_path / "overhead.json").read_text(encoding="utf-8"))
    assert len(content["repetitions"]) == 2
    assert content["rows"][0]["quantity"] == "steering itself / stock"
    assert "steering itself" in capsys.readouterr().out
