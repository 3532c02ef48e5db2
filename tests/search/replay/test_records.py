"""Recorded rewards: what a file must hold, and how early a reward knows."""

import numpy as np
import pytest

from fk_reward.search.replay.records import (
    RewardRecords,
    knowledge,
    mean_interval,
    rank_correlations,
    regression_weights,
    standardized,
    within_prompt_spread,
)


def test_what_was_saved_is_read_back(tmp_path, rng):
    rewards = {"a": rng.standard_normal((3, 4, 5)), "0.5*a + b": rng.standard_normal((3, 4, 5))}
    records = RewardRecords(rewards, ["x", "y", "x"], {"seed": 1})
    read = RewardRecords.load(records.save(tmp_path / "new" / "records.npz"))
    assert list(read.rewards) == list(rewards)
    for name, values in rewards.items():
        np.testing.assert_array_equal(read.of(name), values.astype(np.float32))
    assert (read.prompts, dict(read.settings)) == (("x", "y", "x"), {"seed": 1})
    assert read.clusters.tolist() == [0, 1, 0]
    assert "a" in np.load(tmp_path / "new" / "records.npz").files  # NumPy reads it, too


def test_files_of_others_need_nothing_but_arrays(tmp_path):
    np.savez(tmp_path / "other.npz", imagereward=np.zeros((2, 3, 4), dtype=np.float64))
    read = RewardRecords.load(tmp_path / "other.npz")
    assert read.shape == (2, 3, 4) and read.prompts == () and read.clusters.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "at least one reward"),
        ({"a": np.zeros((2, 3))}, r"a should be an array \(prompts, seeds, steps\).*got \(2, 3\)"),
        ({"a": np.zeros((2, 3, 1))}, "at least 2 steps"),
        ({"a": np.zeros((0, 3, 4))}, "got"),
        ({"a": np.zeros((2, 3, 4)), "b": np.zeros((2, 3, 5))}, r"b is \(2, 3, 5\), not \(2, 3, 4\)"),
        ({"a": np.where(np.arange(24).reshape(2, 3, 4) == 17, np.nan, 0.0)}, "nan at prompt 1, seed 1, step 1"),
        ({"a": np.where(np.arange(24).reshape(2, 3, 4) == 0, -np.inf, 0.0)}, "-inf at prompt 0, seed 0, step 0"),
    ],
)
def test_what_is_no_record_is_refused(rewards, message):
    with pytest.raises(ValueError, match=message):
        RewardRecords(rewards)


def test_prompts_must_be_as_many():
    with pytest.raises(ValueError, match="a text for each of 2 prompts, got 1"):
        RewardRecords({"a": np.zeros((2, 3, 4))}, ["x"])


def test_an_unknown_reward_lists_the_known_ones():
    with pytest.raises(ValueError, match="no reward 'clip'.*'clipscore'.*They hold clipscore, pickscore"):
        RewardRecords({name: np.zeros((1, 2, 2)) for name in ("clipscore", "pickscore")}).of("clip")


def test_a_reward_cannot_take_the_name_of_another_array(tmp_path):
    with pytest.raises(ValueError, match="cannot be called 'prompts'"):
        RewardRecords({"prompts": np.zeros((1, 2, 2))}).save(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.npz is no file of recorded rewards"):
        RewardRecords.load(path)


def test_pickled_objects_and_plain_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "object.npz", a=np.array([{}], dtype=object))
    np.save(tmp_path / "plain.npy", np.zeros((2, 3, 4)))
    for name in ("object.npz", "plain.npy"):
        with pytest.raises(ValueError, match=f"{name} is no file of recorded rewards"):
            RewardRecords.load(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        RewardRecords.load(tmp_path / "nothing.npz")


def test_ranks_agree_with_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    values = rng.integers(0, 6, (4, 30, 3)).astype(float)  # with many ties
    found = rank_correlations(values)
    for prompt in range(4):
        for step in range(3):
            expected = stats.spearmanr(values[prompt, :, step], values[prompt, :, -1]).statistic
            assert found[prompt, step] == pytest.approx(expected, abs=1e-12)


def test_correlation_is_within_the_prompt(rng):
    # prompts differ much, and within a prompt nothing is known: pooled it would be nearly 1
    easy = 100.0 * np.arange(40)[:, None, None]
    values = easy + rng.standard_normal((40, 50, 2))
    pooled = np.corrcoef(values[:, :, 0].ravel(), values[:, :, 1].ravel())[0, 1]
    assert pooled > 0.99
    assert abs(rank_correlations(values)[:, 0].mean()) < 4 / np.sqrt(40 * 49)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_weight_is_the_shrinkage_of_a_gaussian(noise, rng):
    finished = rng.standard_normal((200, 100)) * rng.uniform(0.1, 5.0, (200, 1))
    scale = finished.std(axis=1, keepdims=True)
    values = np.stack([finished + noise * scale * rng.standard_normal(finished.shape), finished], axis=2)
    # E[x | x + noise] = x / (1 + noise^2)
    assert regression_weights(values)[0] == pytest.approx(1 / (1 + noise**2), abs=0.02)


def test_a_reward_that_is_wrong_weighs_nothing(rng):
    finished = rng.standard_normal((20, 100))
    assert regression_weights(np.stack([-finished, finished], axis=2)).tolist() == pytest.approx([0.0, 1.0])


def test_standardized_rewards_have_unit_spread_in_each_prompt(rng):
    values = rng.standard_normal((5, 80, 3)) * np.array([0.001, 1, 10, 100, 0])[:, None, None] + 7
    found = standardized(values)
    assert found[:, :, -1].mean(axis=1) == pytest.approx(np.zeros(5), abs=1e-6)
    assert found[:4, :, -1].std(axis=1, ddof=1) == pytest.approx(np.ones(4))
    assert not found[4].any()  # all seeds alike: nothing to gain, and nothing divided by 0
    assert within_prompt_spread(values[:, :, -1])[4] == 1.0


def test_prompts_of_one_text_are_one_cluster(rng):
    values = rng.standard_normal(30)
    alone = mean_interval(values, np.arange(30))
    repeated, clusters = np.repeat(values, 4), np.repeat(np.arange(30), 4)
    assert mean_interval(repeated, clusters) == pytest.approx(alone)
    # the saboteur, who takes copies for new evidence, claims half the width
    low, high = mean_interval(repeated, np.arange(120))
    assert high - low < 0.7 * (alone[1] - alone[0])


@pytest.mark.parametrize("number", [3, 8, 50])
def test_the_interval_covers(number):
    draws = np.random.default_rng(number).standard_normal((2000, number))
    intervals = np.array([mean_interval(row, np.arange(number)) for row in draws])
    covered = ((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).mean()
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.05 * 0.95 / 2000))


def test_the_interval_is_that_of_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    for number in (2, 3, 4, 5, 20, 50):
        values = rng.standard_normal(number)
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert mean_interval(values, np.arange(number)) == pytest.approx(tuple(expected), rel=0.02, abs=0.005)
    assert mean_interval(values, np.zeros(number)) == (-np.inf, np.inf)


def test_knowledge_has_a_row_for_each_step(rng):
    values = rng.standard_normal((6, 20, 4))
    found = knowledge(values, np.arange(6))
    assert [row.step for row in found] == [0, 1, 2, 3]
    assert all(row.low <= row.correlation <= row.high for row in found)
    assert found[-1].correlation == pytest.approx(1.0) and found[-1].weight == pytest.approx(1.0)
