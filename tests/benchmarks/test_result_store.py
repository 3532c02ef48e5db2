"""Results on disk: resumed, shared between processes, never mixed with those of other settings."""

from __future__ import annotations

import pytest

from fk_reward.benchmarks.result_store import ResultStore

SETTINGS = {"reward": "brightness", "num_particles": (2, 4), "steering": {"potential": "max"}}


def test_results_of_all_writers_come_back(tmp_path):
    first, second = (ResultStore(tmp_path, SETTINGS) for _ in range(2))
    first.append([{"prompt": 0}, {"prompt": 2}], writer="0-of-2")
    second.append([{"prompt": 1}], writer="1-of-2")
    first.append([{"prompt": 4}], writer="0-of-2")
    assert [result["prompt"] for result in ResultStore(tmp_path, SETTINGS).load()] == [0, 2, 4, 1]


def test_other_settings_are_refused_and_named(tmp_path):
    ResultStore(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="reward 'brightness' -> 'darkness'"):
        ResultStore(tmp_path, SETTINGS | {"reward": "darkness"})
    with pytest.raises(ValueError, match="extra"):
        ResultStore(tmp_path, SETTINGS | {"extra": 1})


def test_settings_can_be_read_back(tmp_path):
    ResultStore(tmp_path, SETTINGS)
    assert ResultStore(tmp_path).settings == SETTINGS | {"num_particles": [2, 4]}
    with pytest.raises(FileNotFoundError, match="no results"):
        ResultStore(tmp_path / "empty")


def test_a_line_cut_short_is_dropped(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0}])
    with (tmp_path / "results-0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prom')
    assert store.load() == [{"prompt": 0}]
    store.append([{"prompt": 1}])
    assert store.load() == [{"prompt": 0}, {"prompt": 1}]


def test_a_first_line_cut_short_is_dropped(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    (tmp_path / "results-0.jsonl").write_text('{"prom', encoding="utf-8")
    assert store.load() == []
    store.append([{"prompt": 1}])
    assert store.load() == [{"prompt": 1}]
