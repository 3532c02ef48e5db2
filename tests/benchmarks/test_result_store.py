"""Results on disk: resumed, shared between processes, never mixed with those of other settings."""

from __future__ import annotations

import pytest

from fk_reward.benchmarks.store import ResultStore, settings_changes

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


def test_a_result_that_stands_there_twice_counts_once(tmp_path, caplog):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0, "score": 1}, {"prompt": 1, "score": 2}], writer="a")
    store.append([{"prompt": 1, "score": 3}, {"prompt": 2, "score": 4}], writer="b")
    assert [result["score"] for result in store.load(["prompt"])] == [1, 2, 4]
    assert "results-b.jsonl, line 1: a result that stands there already" in caplog.text
    assert len(store.load()) == 4


def test_a_line_without_what_says_what_it_is_of_is_named(tmp_path):
    store = ResultStore(tmp_path, SETTINGS)
    store.append([{"prompt": 0}, {}])
    with pytest.raises(ValueError, match=r"results-0\.jsonl, line 2 has no prompt"):
        store.load(["prompt"])


@pytest.mark.parametrize("text", ["", "[]", '{"reward": ', "\0\0"])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    for settings in (SETTINGS, None):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            ResultStore(tmp_path, settings)


def test_results_without_settings_are_not_taken_for_those_of_any(tmp_path):
    ResultStore(tmp_path, SETTINGS).append([{"prompt": 0}])
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json is missing"):
        ResultStore(tmp_path, SETTINGS)


def test_changes_are_told_leaf_by_leaf_and_not_without_end():
    assert settings_changes({"a": {"b": [1, 2]}, "c": 0}, {"a": {"b": [1, 3]}, "c": 0}) == "a.b.1 2 -> 3"
    assert settings_changes({"a": []}, {"a": [4]}) == "a [] -> None, a.0 None -> 4"
    many = {str(i): i for i in range(50)}
    assert settings_changes(many, {}).endswith(", 38 more")
