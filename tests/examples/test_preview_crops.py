"""Fewer crops: counts at full size, and orders on the shapes model."""

from __future__ import annotations

import numpy as np
import pytest

from examples.benchmarks.preview_crops import counted_rows, main, order_rows, pairs_alike
from tests.examples.scripts import invoke


def test_tokens_are_those_of_the_official_formula():
    """(crops + 1) * 144 + 1 + (rows + 1) * 12 visual tokens, as `processing_phi3_v.py` counts them."""
    few, many = counted_rows((4, 16), 1024)
    assert many["tokens"] - few["tokens"] == (16 - 4) * 144 + (4 - 2) * 12
    assert few["share"] == pytest.approx(few["gflops"] / many["gflops"])
    assert 0.2 < few["share"] < 0.4
    assert many["share"] == 1


def test_orders_by_hand():
    values = np.array([[[1.0, 1.0], [2.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 1.0], [2.0, 1.0]]])
    assert pairs_alike(values).tolist() == [1.0, 0.0, 0.5]


def test_orders_of_predictions_and_of_finished_images():
    rows = list(order_rows((1, 4), num_prompts=2, num_particles=3, num_inference_steps=8))
    assert [row["step"] for row in rows] == [4, 8]
    assert all(0 <= row["alike"] <= 1 and -1 <= row["correlation"] <= 1 for row in rows)


def test_the_tables(monkeypatch):
    row = {"crops": 4, "tokens": 757, "gflops": 1.0, "share": 0.3}
    monkeypatch.setattr("examples.benchmarks.preview_crops.counted_rows", lambda crops, side: iter([row]))
    options = ("--num-prompts", "2", "--num-particles", "2", "--num-inference-steps", "5", "--markdown")
    table = invoke(main, *options)
    assert "| 4 | 757 | 1 | 0.30 |" in table
    assert "pairs ordered alike" in table
