"""What rewards know of predictions: by hand, against SciPy, and with a saboteur."""

import numpy as np
import pytest
from scipy import stats

from fk_reward.benchmarks.noise_accuracy import (
    PromptAccuracy,
    accuracy_row,
    accuracy_rows,
    pairs_in_order,
    scored_predictions,
    write_accuracy,
)
from fk_reward.rewards import BandedReward, CallableReward, NoiseBand
from tests.training.recorded import LEVELS, write_recording

TEXTS = [f"prompt {i}" for i in range(40)]


def test_pairs_by_hand():
    right, count = pairs_in_order(np.array([[3.0, 1.0, 1.0, 0.0]]), np.array([[4.0, 3.0, 2.0, 2.0]]))
    assert count.tolist() == [5.0], "the two finished alike are no pair"
    assert right.tolist() == [4.5], "a tie of the scores is half right"


def test_accuracy_and_correlation_are_those_of_scipy():
    rng = np.random.default_rng(0)
    finished = rng.normal(size=(40, 8))
    scores = finished + rng.normal(size=(40, 8)) + 10 * rng.normal(size=(40, 1))
    row = accuracy_row(scores, finished, TEXTS)
    spearman = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(scores, finished, strict=True)])
    kendall = np.mean([stats.kendalltau(a, b).statistic for a, b in zip(scores, finished, strict=True)])
    assert row["rank"] == pytest.approx(spearman)
    assert row["pairs"] == pytest.approx((1 + kendall) / 2)
    assert row["pairs_low"] < row["pairs"] < row["pairs_high"] and row["num_pairs"] == 40 * 28


def test_gains_are_paired():
    """Two judges that err on the same prompts differ by little, however much prompts differ; against NumPy."""
    rng = np.random.default_rng(0)
    finished = rng.normal(size=(40, 8))
    noise = rng.normal(size=(40, 8)) * rng.uniform(0, 6, size=(40, 1))
    better, worse = finished + noise, finished + 1.1 * noise
    first, second = (PromptAccuracy.of([one], finished, TEXTS) for one in (better, worse))
    gains, rows = first.gains(second), [accuracy_row(one, finished, TEXTS) for one in (better, worse)]
    for name in ("pairs", "rank"):
        assert gains[f"{name}_gain"] == pytest.approx(rows[0][name] - rows[1][name])
        width, apart = (
            row[f"{key}_high"] - row[f"{key}_low"] for row, key in ((gains, f"{name}_gain"), (rows[0], name))
        )
        assert width < apart / 3
    assert all(value == 0 for value in first.gains(first).values())


def test_runs_of_one_judge_are_averaged():
    finished = np.arange(6.0).reshape(2, 3)
    both = PromptAccuracy.of([finished, -finished], finished, TEXTS[:2])
    assert both.row()["pairs"] == 0.5 and both.row()["rank"] == pytest.approx(0.0) and both.runs == (1.0, 0.0)


def test_a_judge_that_knows_nothing_has_half_the_pairs():
    rng = np.random.default_rng(0)
    row = accuracy_row(rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), TEXTS)
    assert row["pairs_low"] < 0.5 < row["pairs_high"] and abs(row["rank"]) < 4 / (40 * 7) ** 0.5
    alike = accuracy_row(np.ones((40, 8)), rng.normal(size=(40, 8)), TEXTS)
    assert alike["pairs"] == 0.5 and alike["rank"] == 0.0


def test_prompts_without_a_pair_play_no_part():
    row = accuracy_row(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 1.0]]), TEXTS[:2])
    assert row["pairs"] == 1.0 and row["num_pairs"] == 1
    assert accuracy_row(np.ones((2, 2)), np.ones((2, 2)), TEXTS[:2])["pairs"] is None


def test_a_reward_is_held_against_its_judges_by_level(tmp_path):
    records = write_recording(tmp_path, num_prompts=8)
    grey = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "grey")
    wrong = CallableReward(lambda images, prompts: -images.mean(dim=(1, 2, 3)), "wrong")
    found = []
    list(scored_predictions(records, {"named": BandedReward(grey, {NoiseBand(0.5, 0.7): wrong})}, found=found))
    rows = accuracy_rows(records, found, ["grey"])
    table = {(row["level"], row["judge"]): row["pairs"] for row in rows}
    assert set(table) == {*((level, "grey") for level in (*LEVELS, 0.0)), (0.6, "wrong")}
    assert table[0.6, "wrong"] == pytest.approx(1 - table[0.6, "grey"])
    assert table[0.0, "grey"] > 0.99 and table[0.6, "grey"] > 0.95
    assert [row["level"] for row in rows] == sorted((row["level"] for row in rows), reverse=True)
    gains = {(row["level"], row["judge"]): row.get("pairs_gain") for row in rows}
    assert gains[0.6, "wrong"] == pytest.approx(table[0.6, "wrong"] - table[0.6, "grey"])
    assert [key for key, gain in gains.items() if gain is not None] == [(0.6, "wrong")]
    report = write_accuracy(tmp_path / "out", records, rows)
    assert all(path.is_file() for path in report.files)
    with pytest.raises(ValueError, match="holds no scores"):
        accuracy_rows(records, found, ["nobody"])
