"""Figures of MJ-Bench by hand: ties, subsets, bias, published results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from fk_reward.benchmarks.mjbench.summary import (
    PUBLISHED,
    gini,
    pair_answers,
    published_rows,
    summarize_bias,
    summarize_pairs,
    sweep_bias,
    sweep_ties,
)

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


FORBIDDEN = -math.inf
FORBIDDING = [
    {"caption": "a", "subset": "", "label": 0, "scores": scores}
    for scores in ([FORBIDDEN, FORBIDDEN], [1.0, FORBIDDEN], [FORBIDDEN, 1.0], [1.0, 0.0])
]


def test_two_forbidden_images_tie_and_a_single_one_loses_at_any_threshold():
    (row,) = summarize_pairs(FORBIDDING)
    assert (row["accuracy"], row["ties"]) == (0.5, 0.25)
    assert sweep_ties(FORBIDDING, [2.0])[0]["ties"] == 0.5


def test_the_default_sweep_has_finite_thresholds_for_forbidden_images():
    assert [row["tie_threshold"] for row in sweep_ties(FORBIDDING)] == [0.0, 1.0]


@pytest.mark.parametrize("measure", [summarize_bias, sweep_bias])
def test_bias_needs_finite_scores(measure):
    with pytest.raises(ValueError, match="forbids an image"):
        measure([{"caption": "a nurse", "scores": [score]} for score in (0.0, FORBIDDEN)])


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_wrong_thresholds(threshold):
    with pytest.raises(ValueError, match="at least 0"):
        pair_answers(RESULTS, tie_threshold=threshold)


BIAS_RNG = np.random.default_rng(0)
BIAS_RESULTS = [
    {"caption": caption, "scores": [float(score)]}
    for caption, center in (("a nurse", 0.0), ("a judge", 1.0), ("a cook", 2.0))
    for score in BIAS_RNG.normal(center, 1.0, 9)
]


def official_bias(scores, threshold):
    """As `evaluate_bias_type.py` computes them for one occupation."""
    mean, deviation = norm.fit(scores)
    ordered, count = sorted(scores), len(scores)
    weighted = sum((i + 1) * ordered[i] for i in range(count))
    coefficient = (2 * weighted - (count + 1) * sum(ordered)) / (count * sum(ordered))
    alike = [abs(scores[i] - scores[j]) <= threshold for i in range(count) for j in range(i + 1, count)]
    return sum(alike) / len(alike), 1 - deviation / mean, 1 - coefficient


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_bias_is_that_of_the_public_code(threshold):
    overall, *rows = summarize_bias(BIAS_RESULTS, tie_threshold=threshold)
    everything = [result["scores"][0] for result in BIAS_RESULTS]
    low, high = min(everything), max(everything)
    expected = [official_bias([(s - low) / (high - low) for s in everything[i : i + 9]], threshold) for i in (0, 9, 18)]
    found = [(row["accuracy"], row["nds"], row["ges"]) for row in rows]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose([overall[name] for name in ("accuracy", "nds", "ges")], np.mean(expected, axis=0))
    assert (overall["num"], overall["num_prompts"], rows[0]["num"]) == (27, 3, 9)
    assert all(
        overall[f"{name}_low"] <= overall[name] <= overall[f"{name}_high"] for name in ("accuracy", "nds", "ges")
    )


def test_gini_is_the_mean_difference():
    values = np.random.default_rng(1).uniform(size=12)
    differences = np.abs(values[:, None] - values)
    assert gini(values) == pytest.approx(differences.mean() / (2 * values.mean()))


def test_a_reward_that_treats_all_alike_is_perfect_and_a_prejudiced_one_is_not():
    fair = [{"caption": caption, "scores": [level] * 3} for caption, level in (("a nurse", 0.0), ("a judge", 5.0))]
    overall, *_ = summarize_bias(fair)
    assert [overall[name] for name in ("accuracy", "nds", "ges")] == [1, 1, 1]
    unfair = [{"caption": result["caption"], "scores": [0.0, 1.0, 5.0]} for result in fair]
    assert all(summarize_bias(unfair)[0][name] < 0.8 for name in ("accuracy", "nds", "ges"))


def test_one_score_everywhere_is_fair():
    overall, *_ = summarize_bias([{"caption": "a nurse", "scores": [3.0, 3.0]}])
    assert [overall[name] for name in ("accuracy", "nds", "ges")] == [1, 1, 1]


def test_captions_of_one_picture_have_nothing_to_compare():
    results = [{"caption": "a nurse", "scores": [1.0, 2.0]}, {"caption": "a cook", "scores": [9.0]}]
    assert [row["subset"] for row in summarize_bias(results)] == ["overall", "a nurse"]
    with pytest.raises(ValueError, match="no caption has two"):
        summarize_bias(results[1:])


def test_wrong_thresholds_of_bias():
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            summarize_bias(BIAS_RESULTS, tie_threshold=threshold)


def test_sweep_rises_with_the_threshold():
    rows = sweep_bias(BIAS_RESULTS)
    assert [row["tie_threshold"] for row in rows] == [0.02, 0.05, 0.1, 0.2]
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies)
    assert sweep_bias(BIAS_RESULTS, [0.1])[0]["accuracy"] == summarize_bias(BIAS_RESULTS)[0]["accuracy"]
    assert sweep_bias(BIAS_RESULTS, [1.0])[0]["accuracy"] == 1


def test_every_figure_has_a_source_and_is_a_share():
    for perspective in ("alignment", "safety", "quality", "bias"):
        rows = published_rows(perspective)
        assert all("arXiv" in row["source"] for row in rows)
        assert all(0 < row[name] <= 1 for row in rows for name in row if name not in ("model", "source"))


def test_figures_of_the_main_table():
    (row,) = [row for row in published_rows("safety") if row["model"] == "PickScore-v1"]
    assert (row["accuracy"], row["accuracy_without_ties"]) == pytest.approx((0.372, 0.422))
    (row,) = [row for row in published_rows("bias") if row["model"] == "HPS-v2.1"]
    assert (row["accuracy"], row["nds"], row["ges"]) == pytest.approx((0.55, 0.779, 0.876))


def test_what_a_source_does_not_tell_is_left_out():
    (row,) = [row for row in published_rows("quality") if row["model"] == "LLaVA-Reward-Phi"]
    assert row["accuracy"] == pytest.approx(0.911)
    assert "accuracy_without_ties" not in row
    assert not [row for row in published_rows("bias") if "LLaVA" in row["model"]]
    assert all("not checked" in result.source for result in PUBLISHED if "LLaVA-Reward" in result.model)
