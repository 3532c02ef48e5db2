"""Accuracies and ties by hand, against the public rules in our words, and on results with a known answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fk_reward.benchmarks.rankings.summary import (
    Pair,
    calibrated_accuracy,
    half_for_ties,
    inversion_accuracy,
    pairs_of,
    summarize_rankings,
)


def result(order, scores, prompt="a"):
    return {"prompt": prompt, "order": order, "scores": scores}


def test_by_hand():
    results = [result([3, 2, 1], [0.9, 0.1, 0.1]), result([1, 1, 2], [0.5, 0.4, 0.3], "b")]
    row = summarize_rankings(results, "imagereward")
    # a: right, right, tie; b: people's tie, wrong, wrong
    assert (row["num"], row["human_ties"], row["num_prompts"]) == (5, 1, 2)
    assert row["accuracy"] == pytest.approx(2 / 5)
    assert row["ties"] == pytest.approx(1 / 5)
    assert row["accuracy_without_ties"] == pytest.approx(2 / 4)
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert row["own"] is None


def public_imagereward_accuracy(results):
    """`acc` of ImageReward's `test.py`, in our words: people's ties are skipped, the reward's are wrong."""
    total = right = 0
    for one in results:
        for i, j in itertools.combinations(range(len(one["order"])), 2):
            if one["order"][i] != one["order"][j]:
                total += 1
                better, worse = (i, j) if one["order"][i] > one["order"][j] else (j, i)
                right += one["scores"][better] > one["scores"][worse]
    return right / total


def public_inversion_score(results):
    """`inversion_score` of HPSv2's `train.py` on ranks, in our words, averaged over prompts."""
    found = []
    for one in results:
        ranks = [-value for value in one["order"]]
        places = list(np.argsort(np.argsort(-np.asarray(one["scores"]), kind="stable"), kind="stable"))
        pairs = list(itertools.combinations(range(len(ranks)), 2))
        wrong = sum((places[i] - places[j]) * (ranks[i] - ranks[j]) < 0 for i, j in pairs)
        found.append(1 - wrong / len(pairs))
    return np.mean(found)


def public_pickapic_score(results):
    """`calc_score` of PickScore's script at threshold 0, in our words."""
    points = []
    for one in results:
        label = "tie" if one["order"][0] == one["order"][1] else int(np.argmax(one["order"]))
        said = "tie" if one["scores"][0] == one["scores"][1] else int(np.argmax(one["scores"]))
        points.append(1 if label == said else 0.5 if "tie" in (label, said) else 0)
    return np.mean(points)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [
        result(rng.integers(1, 5, size=6).astype(float).tolist(), rng.normal(size=6).tolist(), f"p{i}")
        for i in range(50)
    ]


def test_against_the_public_rules(drawn):
    row = summarize_rankings(drawn, "hpdv2")
    assert row["accuracy"] == pytest.approx(public_imagereward_accuracy(drawn))
    assert row["own"] == pytest.approx(public_inversion_score(drawn))
    assert row["own"] == inversion_accuracy(drawn)
    assert row["own"] > row["accuracy"] + 0.05  # people's ties count as right there: not to be compared
    pairs = [result(one["order"][:2], [round(value) for value in one["scores"][:2]]) for one in drawn]
    assert half_for_ties(pairs) == pytest.approx(public_pickapic_score(pairs))


def brute_force(pairs):
    """Best accuracy over all thresholds, one after the other."""
    best = (-1.0, 0.0)
    for threshold in sorted({0.0, *(abs(pair.margin) for pair in pairs)}):
        tied = [abs(pair.margin) <= threshold for pair in pairs]
        right = [
            pair.human == 0 if tie else pair.margin * pair.human > 0 for pair, tie in zip(pairs, tied, strict=True)
        ]
        best = max(best, (float(np.mean(right)), -threshold))
    return best[0], -best[1]


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_calibrated_ties_against_brute_force(drawn, digits):
    for one in (drawn[:1], drawn[:7]):
        pairs = [pair for each in one for pair in pairs_of(each)]
        pairs = [pair._replace(margin=round(pair.margin, digits)) for pair in pairs]
        assert calibrated_accuracy(pairs) == pytest.approx(brute_force(pairs))


def test_calibration_when_people_never_or_always_tie():
    assert calibrated_accuracy([Pair(1, 0.5, "a"), Pair(1, 0.1, "a")]) == (1.0, 0.0)
    assert calibrated_accuracy([Pair(0, 0.5, "a"), Pair(0, 0.1, "a")]) == (1.0, 0.5)


def test_margins_of_rewards_that_compare():
    pairs = pairs_of({"prompt": "a", "order": [1, 2, 2], "margins": [[0, 1, -0.2], [0, 2, 0.3], [1, 2, 0.0]]})
    assert pairs == [Pair(-1, -0.2, "a"), Pair(-1, 0.3, "a"), Pair(0, 0.0, "a")]


def test_two_scores_of_minus_infinity_tie():
    assert pairs_of(result([2, 1], [-np.inf, -np.inf])) == [Pair(1, 0.0, "a")]


def test_the_interval_covers_a_known_share():
    """A reward that is right with probability .7, 200 prompts: in 40 repetitions the interval covers .7 in most."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        right = rng.random(200) < 0.7
        rows = [result([2, 1], [1.0, 0.0] if one else [0.0, 1.0], f"p{i}") for i, one in enumerate(right)]
        row = summarize_rankings(rows, "hpdv3")
        covered += row["low"] <= 0.7 <= row["high"]
    assert covered >= 34  # 38 expected; fewer than 34 has a probability of 1 %


def test_nothing_decided_is_refused():
    with pytest.raises(ValueError, match="People tie all pairs"):
        summarize_rankings([result([1, 1], [0.5, 0.4])], "hpdv2")
