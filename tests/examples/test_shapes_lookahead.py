"""The look-ahead benchmark: its measures by hand, and a run of two steps."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from examples.benchmarks import shapes_lookahead
from examples.benchmarks.shapes_lookahead import Knowledge, differences, pair_accuracy, rank_correlation, summarize
from tests.examples.scripts import invoke


def test_pair_accuracy_by_hand():
    correct = torch.tensor([True, False, True, False])
    assert pair_accuracy(torch.tensor([3.0, 1.0, 2.0, 2.0]), correct) == pytest.approx(3.5 / 4)
    assert pair_accuracy(-torch.tensor([3.0, 1.0, 2.0, 2.0]), correct) == pytest.approx(0.5 / 4)
    assert pair_accuracy(torch.ones(2), torch.tensor([True, True])) is None


def test_rank_correlation_by_hand():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(first, first.exp()) == pytest.approx(1.0)
    assert rank_correlation(first, torch.tensor([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation(first, torch.ones(4)) is None


def test_rows_of_predictions_and_of_the_end():
    finished, correct = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, False, True])
    known = [Knowledge(text, {("r", 4, 3): -finished}, {"r": finished}, correct) for text in ("a", "b")]
    predicted, end = summarize(known)
    assert (predicted["sample_steps"], predicted["accuracy"], predicted["correlation"]) == (7, 0.0, pytest.approx(-1.0))
    assert (end["reward"], end["accuracy"], end["correlation"]) == ("r, finished", 1.0, pytest.approx(1.0))


def test_differences_are_of_equal_sample_steps_and_paired():
    """By hand: with the bands nothing is mistaken after 6 steps, without them all; a look-ahead is as good."""
    finished, correct = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, False, True])
    predicted = {("r", 6, 1): -finished, ("r@bands", 6, 1): finished, ("r", 4, 3): finished, ("r", 4, 1): finished}
    known = [Knowledge(text, predicted, {"r": finished, "r@bands": finished}, correct) for text in ("a", "b")]
    rows = {(row["judged"], row["minus"]): (row["accuracy"], row["correlation"]) for row in differences(known)}
    assert rows == {
        ("after 6, 1 ahead, bands", "after 6, 1 ahead"): (1.0, pytest.approx(2.0)),
        ("after 4, 3 ahead", "after 6, 1 ahead"): (1.0, pytest.approx(2.0)),
        ("after 4, 3 ahead", "after 6, 1 ahead, bands"): (0.0, pytest.approx(0.0)),
    }


def test_main(tmp_path):
    small = ["--num-prompts", 2, "--num-particles", 3, "--steps", 4, "--after", "1,2", "--lookahead", "1,2"]
    small += ["--budget", 8]
    output = invoke(shapes_lookahead.main, *small, "--reward", "shapes-clipscore", "--out", tmp_path / "out")
    assert "rank correlation" in output
    content = json.loads((tmp_path / "out" / "lookahead.json").read_text())
    assert {row["reward"].partition(",")[0] for row in content["rows"]} == {"shapes-clipscore", "shapes-verifier"}
    assert {(row["reward"], row["lookahead"]) for row in content["uses"]} == set(
        itertools.product(("shapes-clipscore", "shapes-verifier"), (1, 2))
    )
    assert len(content["rows"]) == 2 * (2 * 2 + 1)
    assert [(row["judged"], row["minus"]) for row in content["differences"]] == [
        ("after 1, 2 ahead", "after 2, 1 ahead")
    ] * 2
    finished = [row for row in content["rows"] if row["reward"].endswith("clipscore, finished")]
    assert finished[0]["correlation"] == pytest.approx(1.0)
