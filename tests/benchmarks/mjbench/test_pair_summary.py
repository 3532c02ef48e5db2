"""Accuracy with and without ties: against the loops of the public code's rule, by hand, and with broken labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fk_reward.benchmarks.mjbench.summary import pair_answers, summarize_pairs, sweep_ties

RNG = np.random.default_rng(0)
RESULTS = [
    {
        "caption": f"caption {i % 17}",
        "subset": ("counting", "object")[i % 3 == 0],
        "label": int(RNG.integers(2)),
        "scores": RNG.integers(0, 6, 2).tolist(),
    }
    for i in range(80)
]


def official_measures(results, threshold):
    """Ties, accuracy with ties counted as wrong, accuracy without them, with a prediction each as in `get_pred`."""
    predictions = []
    for result in results:
        first, second = result["scores"]
        predictions.append("tie" if abs(second - first) <= threshold else "0" if first > second else "1")
    right = sum(prediction == str(result["label"]) for prediction, result in zip(predictions, results, strict=True))
    num_ties = predictions.count("tie")
    return num_ties / len(results), right / len(results), right / (len(results) - num_ties)


@pytest.mark.parametrize("threshold", [0, 1, 2.5])
def test_measures_are_those_of_the_public_rule(threshold):
    overall, *subsets = summarize_pairs(RESULTS, tie_threshold=threshold)
    groups = [RESULTS, *([r for r in RESULTS if r["subset"] == row["subset"]] for row in subsets)]
    assert [row["subset"] for row in subsets] == ["counting", "object"]
    for row, group in zip([overall, *subsets], groups, strict=True):
        measures = (row["ties"], row["accuracy"], row["accuracy_without_ties"])
        assert measures == pytest.approx(official_measures(group, threshold))
        assert row["low"] < row["accuracy"] < row["high"]
        assert row["decided_low"] < row["accuracy_without_ties"] < row["decided_high"]
        assert row["num"] == len(group)


def test_swapped_labels_are_noticed():
    swapped = [result | {"label": 1 - result["label"]} for result in RESULTS]
    before, after = (summarize_pairs(results)[0]["accuracy_without_ties"] for results in (RESULTS, swapped))
    assert after == pytest.approx(1 - before)
    assert after != pytest.approx(before)


def test_a_difference_equal_to_the_threshold_ties():
    results = [{"caption": "a", "subset": "", "label": 0, "scores": scores} for scores in ([0.75, 0.5], [0.75, 0.25])]
    assert (pair_answers(results, tie_threshold=0.25).logits != 0).tolist() == [False, True]
    assert (pair_answers(results, tie_threshold=0.5).logits != 0).tolist() == [False, False]


def test_a_single_subset_gets_no_row_and_all_ties_no_accuracy_without():
    (row,) = summarize_pairs([{"caption": "a", "subset": "x", "label": 0, "scores": [1.0, 1.0]}])
    assert (row["subset"], row["accuracy"], row["ties"]) == ("overall", 0, 1)
    assert "accuracy_without_ties" not in row


def test_sweep():
    rows = sweep_ties(RESULTS, [2.5, 0, 1, 1])
    assert [row["tie_threshold"] for row in rows] == [0, 1, 2.5]
    expected = [official_measures(RESULTS, threshold) for threshold in (0, 1, 2.5)]
    found = [(row["ties"], row["accuracy"], row["accuracy_without_ties"]) for row in rows]
    np.testing.assert_allclose(found, expected)


def test_the_default_sweep_reaches_its_shares_of_ties():
    results = [
        {"caption": "a", "subset": "", "label": 0, "scores": [float(x), 0.0]}
        for x in np.random.default_rng(1).normal(size=50)
    ]
    rows = sweep_ties(results)
    assert [row["ties"] for row in rows] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_wrong_thresholds(threshold):
    with pytest.raises(ValueError, match="at least 0"):
        pair_answers(RESULTS, tie_threshold=threshold)
