"""Stopped, resumed, shared: the same results, and no question scored twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fk_reward.benchmarks.mjbench.answers import load_results, run_missing
from fk_reward.benchmarks.store import ResultStore
from fk_reward.rewards import CallableReward
from tests.benchmarks.mjbench.stage import BRIGHTNESS, Counting, grey, table

LEVELS = np.random.default_rng(0).permutation(120).reshape(-1, 2).tolist()
ROWS = [
    {"caption": f"caption {i}", "image0": grey(a), "image1": grey(b), "label": i % 2} for i, (a, b) in enumerate(LEVELS)
]


def run(folder, reward=BRIGHTNESS, **options):
    store = ResultStore(folder, {"reward": "brightness"})
    return list(run_missing(reward, table(ROWS), store, **options)), store


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return load_results(run(tmp_path_factory.mktemp("whole"))[1])


def test_results(expected):
    assert [result["index"] for result in expected] == list(range(60))
    assert expected[3]["scores"] == pytest.approx([level / 255 for level in LEVELS[3]])
    assert expected[3] | {"scores": None} == {
        "index": 3,
        "caption": "caption 3",
        "subset": "",
        "label": 1,
        "scores": None,
    }


def test_killed_ten_times(tmp_path, expected):
    counting = Counting(killed_at=np.random.default_rng(1).choice(np.arange(1, 41), 10, replace=False).tolist())
    num_kills = 0
    while True:
        try:
            run(tmp_path, CallableReward(counting), batch_size=2)
            break
        except KeyboardInterrupt:
            num_kills += 1
    assert num_kills == 10
    assert load_results(ResultStore(tmp_path)) == expected
    assert Counter(counting.asked) == {row["caption"]: 2 for row in ROWS}, "a question has two pictures, scored once"


def test_a_run_that_forgets_what_is_done_is_noticed(tmp_path):
    counting = Counting()
    for _ in range(2):
        store = ResultStore(tmp_path / str(counting.calls), {})
        list(run_missing(CallableReward(counting), table(ROWS), store))
    assert Counter(counting.asked) != {row["caption"]: 2 for row in ROWS}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_a_line_cut_by_a_kill_is_scored_again(tmp_path, expected, share):
    _, store = run(tmp_path)
    (path,) = tmp_path.glob("results-*.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    ((_, num_left),) = run(tmp_path, batch_size=100)[0]
    assert 0 < num_left < 60
    assert load_results(store) == expected


def test_shards_share_the_work(tmp_path, expected):
    counting = Counting()
    for index in (2, 0):
        run(tmp_path, CallableReward(counting), shard=(index, 3), batch_size=7)
    assert len(load_results(ResultStore(tmp_path))) == 40
    steps, store = run(tmp_path, CallableReward(counting), batch_size=16)
    assert steps == [(16, 20), (20, 20)], "whoever comes later does the rest, whatever the shards were"
    assert load_results(store) == expected
    assert set(Counter(counting.asked).values()) == {2}


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_change_nothing(tmp_path, expected, batch_size):
    assert load_results(run(tmp_path, batch_size=batch_size)[1]) == expected


def test_no_results_yet(tmp_path):
    with pytest.raises(ValueError, match="no results yet"):
        load_results(ResultStore(tmp_path, {}))


def test_a_broken_picture_stops_the_run_and_keeps_what_is_done(tmp_path):
    rows = [*ROWS[:2], {**ROWS[2], "image1": b"no picture"}]
    store = ResultStore(tmp_path, {})
    with pytest.raises(ValueError, match="rows:3: image of 10 bytes cannot be read"):
        list(run_missing(BRIGHTNESS, table(rows), store, batch_size=1))
    assert len(store.load()) == 2
