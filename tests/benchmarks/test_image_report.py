"""The figures of a report against ones computed by hand and by the official rules."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fk_reward import FKSteeringConfig
from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_results import read_runs
from tests.benchmarks import image_stage
from tests.benchmarks.image_stage import RECORDS, SETTINGS, write_run, write_two_runs


@pytest.fixture
def out(tmp_path):
    return write_two_runs(tmp_path)


def test_figures(out):
    report = write_report(out)
    summary = json.loads((out / "report.json").read_text())
    unsteered, steered = summary["runs"]
    assert [run["run"] for run in summary["runs"]] == ["unsteered", "fk-4-brightness"]
    accuracy = unsteered["accuracy"]
    assert list(accuracy) == ["overall", "single_object", "colors"]
    assert [interval["estimate"] for interval in accuracy.values()] == [0.75, 0.75, 0.75]
    assert all(interval["low"] < 0.75 < interval["high"] for interval in accuracy.values())
    assert unsteered["correct_prompts"] == 1.0
    assert unsteered["difference"] is None
    assert {name: interval["estimate"] for name, interval in steered["difference"].items()} == {
        "overall": 0.25,
        "single_object": 0.25,
        "colors": 0.25,
    }
    assert steered["score_differences"]["brightness"]["estimate"] == pytest.approx(20 / 255 / 3, rel=1e-5)
    assert steered["score_differences"]["brightness"]["low"] == pytest.approx(20 / 255 / 3, rel=1e-5)
    assert steered["cost"] == {"model_calls": 2, "model_rows": 4, "decodes": 1, "reward_calls": 1, "seconds": 0.25}
    assert [table.title for table in report.tables] == [
        "Accuracy",
        "Paired differences of accuracy to unsteered",
        "Mean rewards",
        "Paired differences of rewards to unsteered",
        "Cost of an image",
    ]
    text = (out / "report.md").read_text()
    assert "| fk | brightness | 4 | 1.000 [1.000, 1.000] | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.000 | 4 | 8 |" in text
    assert "| unsteered | - | 1 | 2.0 | 4.0 | 1.0 | 1.0 | 0.25 |" in text


def test_overall_is_the_mean_of_the_tasks_not_of_the_pictures(tmp_path):
    write_run(tmp_path, records=RECORDS[:3])
    write_report(tmp_path)
    (row,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert [interval["estimate"] for interval in row["accuracy"].values()] == [0.625, 0.75, 0.5]
    assert row["difference"] is None


def test_one_picture_of_a_task_tells_nothing_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(image_stage, "NUM_SAMPLES", 1)
    write_run(tmp_path, replace(SETTINGS, num_samples=1), records=RECORDS[:3])
    report = write_report(tmp_path)
    accuracy = json.loads((tmp_path / "report.json").read_text())["runs"][0]["accuracy"]
    assert {name: interval["low"] is None for name, interval in accuracy.items()} == {
        "overall": True,
        "single_object": False,
        "colors": True,
    }
    (table,) = [table for table in report.tables if table.title == "Accuracy"]
    assert "[" not in table.rows[0]["overall"]
    assert "±" not in table.rows[0]["colors"]
    assert "±" in table.rows[0]["single_object"]


def official_summary(path):
    """The figures of GenEval's `summary_scores.py`, in our words: overall score, and shares of images and prompts."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tasks, prompts = {}, {}
    for line in lines:
        tasks.setdefault(line["tag"], []).append(line["correct"])
        prompts.setdefault(line["metadata"], []).append(line["correct"])
    images = np.mean([line["correct"] for line in lines])
    return np.mean([np.mean(task) for task in tasks.values()]), images, np.mean([any(p) for p in prompts.values()])


def test_results_are_in_the_official_format(out):
    write_report(out)
    rows = json.loads((out / "report.json").read_text())["runs"]
    for row in rows:
        path = out / row["run"] / "results.jsonl"
        overall, _, prompts = official_summary(path)
        assert overall == row["accuracy"]["overall"]["estimate"]
        assert prompts == row["correct_prompts"]
    first = json.loads((out / "unsteered" / "results.jsonl").read_text().splitlines()[0])
    names = ["filename", "tag", "prompt", "correct", "reason", "details", "metadata"]
    assert sorted(first) == sorted(names)
    assert (first["filename"], first["correct"]) == ("00000/samples/0000.png", False)
    assert json.loads(first["metadata"]) == RECORDS[0]
    assert json.loads(first["details"]) == {"cow": [[0, 0, 1, 1, 0.5]]}


def test_several_values_of_k_in_order(tmp_path):
    write_run(tmp_path, replace(SETTINGS, search=FKSteeringConfig(num_particles=16)))
    write_run(tmp_path, SETTINGS)
    write_run(tmp_path, replace(SETTINGS, method="best-of-n"))
    write_run(tmp_path, SETTINGS.unsteered())
    names = [run.name for run in read_runs(tmp_path)]
    assert names == ["unsteered", "best-of-4-brightness", "fk-4-brightness", "fk-16-brightness"]


def test_wrong_folders(tmp_path):
    with pytest.raises(NotADirectoryError, match="There is no folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)
