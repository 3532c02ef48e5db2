"""Two runs of different people: compared where they can be, refused where not, and what differs is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from fk_reward.benchmarks.comparison import compare_runs, read_pair, share_noise, what_differs
from fk_reward.benchmarks.image_results import read_run
from fk_reward.benchmarks.image_store import MANIFEST
from tests.benchmarks.image_stage import IDENTITY, RECORDS, SETTINGS, Fool, StubJudge, finish_run, write_run
from tests.command_line import run_command_line


@pytest.fixture
def runs(tmp_path):
    """Mine: cows right in one of two samples, dogs in both. Yours: everything right, with another number of steps."""
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    write_run(mine, SETTINGS)
    write_run(yours, replace(SETTINGS, num_steps=20), shift=20, judge=Fool())
    return mine, yours


def test_what_differs_and_by_how_much(runs, tmp_path):
    report = compare_runs(*runs, out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    overall = content["accuracy"][0]
    assert overall["task"] == "overall"
    assert [overall[name]["estimate"] for name in ("first", "second", "difference")] == [0.75, 1.0, -0.25]
    assert content["differences"] == [{"what": "settings.num_steps", "first": "10", "second": "20"}]
    assert content["same_noise"] is False
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "4 prompts, 8 pairs of images" in text and "do not share their noise" in text
    assert "1 setting differs: see the last table." in text
    assert (tmp_path / "out" / "compare.tex").read_text().count("\\begin{tabular}") == len(report.tables)
    assert [table.title for table in report.tables] == ["Accuracy", "Rewards", "Cost of an image", "What differs"]


def test_the_other_way_round_has_the_other_sign(runs):
    there, back = (compare_runs(*pair).tables[0].rows[0]["difference"] for pair in (runs, runs[::-1]))
    assert there.startswith("-0.250") and back.startswith("+0.250")


def test_runs_with_the_same_noise(tmp_path):
    write_run(tmp_path / "mine", SETTINGS)
    write_run(tmp_path / "yours", SETTINGS.unsteered())
    mine, yours = read_pair(tmp_path / "mine", tmp_path / "yours")
    assert share_noise(mine, yours)
    changed = {row["what"] for row in what_differs(mine, yours)}
    assert {"settings.method", "settings.reward", "settings.search.num_particles"} <= changed
    assert {
        row["second"] for row in what_differs(mine, yours) if row["what"].startswith("settings.search.potential")
    } == {"not there"}


def test_the_command_of_a_run_is_no_difference(runs):
    for folder, command in zip(runs, ("fk-reward geneval a", "fk-reward geneval b"), strict=True):
        path = folder / SETTINGS.name / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), "command": command}))
    assert [row["what"] for row in what_differs(*read_pair(*runs))] == ["settings.num_steps"]


def test_images_of_something_else_are_compared_too(tmp_path):
    write_run(tmp_path / "mine", SETTINGS)
    finish_run(tmp_path / "others")
    report = compare_runs(tmp_path / "mine", tmp_path / "others")
    assert "others: no manifest" in " ".join(report.facts)
    assert report.tables[0].rows[0]["difference"].startswith("+0.000")


def test_fewer_samples_are_compared_on_what_both_have(runs):
    root = runs[1] / SETTINGS.name
    for index in range(len(RECORDS)):
        (root / f"{index:05d}" / "samples" / "0001.png").unlink()
    path = root / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["settings"]["num_samples"] = 1
    path.write_text(json.dumps(manifest))
    from fk_reward.benchmarks.image_store import prompt_folders
    from fk_reward.benchmarks.judging import judge_missing

    list(judge_missing(prompt_folders(root), Fool()))
    assert len(read_run(root).images) == 4
    report = compare_runs(*runs)
    assert "4 pairs of images" in report.facts[1] and "4 images that only one of the runs has" in report.facts[2]


@pytest.mark.parametrize("case", ["judge", "prompts", "fewer", "same", "several", "none", "unfinished"])
def test_what_cannot_be_compared(runs, tmp_path, case):
    mine, yours = runs
    if case == "judge":
        shutil.rmtree(yours)
        write_run(yours, SETTINGS, judge=StubJudge({**IDENTITY, "version": 2}))
        message = "judged by different judges (version: 1 and 2)"
    elif case == "prompts":
        shutil.rmtree(yours)
        write_run(yours, SETTINGS, records=tuple({**one, "prompt": one["prompt"] + "!"} for one in RECORDS))
        message = "prompt 0 is 'a photo of a cow' and 'a photo of a cow!'"
    elif case == "fewer":
        shutil.rmtree(yours)
        write_run(yours, SETTINGS, records=RECORDS[:3])
        message = "different prompts: 4 and 3 of them"
    elif case == "same":
        yours, message = mine / SETTINGS.name, "the same run twice"
    elif case == "several":
        write_run(mine, SETTINGS.unsteered())
        message = "holds 2 runs; name one of them"
    elif case == "none":
        yours, message = tmp_path / "nowhere", "There is no folder"
    else:
        shutil.rmtree(yours / SETTINGS.name / "00003")
        message = "3 of 4 prompts: generate the others"
    result = run_command_line("compare", mine, yours)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_the_command(runs, tmp_path):
    result = run_command_line("compare", *runs, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "What differs" in result.stdout and "settings.num_steps" in result.stdout
    assert (tmp_path / "report" / "compare.md").is_file()
    assert "Report:" not in run_command_line("compare", *runs).stdout
