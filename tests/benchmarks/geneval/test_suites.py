"""The suites by name, what each of them reads, and those of questions from end to end, offline."""

from __future__ import annotations

import json

import pytest

from fk_reward.benchmarks.geneval.suites import SUITES, find_suite
from fk_reward.benchmarks.task import TaskOptions
from tests.benchmarks.image_stage import tree
from tests.command_line import run_command_line
from tests.repository.layout import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_sd):
    folder = tmp_path_factory.mktemp("tiny-sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


def run(*arguments):
    result = run_command_line("benchmark", *arguments)
    assert result.exit_code == 0, result.output
    return result


def small(model, out):
    options = ["--model", model, "--method", "unsteered", "--steps", "2", "--num-samples", "2", "--device", "cpu"]
    return [*options, "--guidance-scale", "1", "--out", out]


def report(out):
    return json.loads((out / "report.json").read_text())


def test_an_option_of_other_suites_is_refused_with_their_names():
    for name, options, message in (
        ("shapes", TaskOptions(judge="x"), r"--judge goes with the suites geneval2, dpg-bench, genai-bench"),
        ("geneval2", TaskOptions(second_judge="x"), r"--second-judge goes with the suites official, shapes"),
        ("geneval2", TaskOptions(questions="x"), r"--questions goes with the suites genai-bench, t2i-compbench, quest"),
        ("official", TaskOptions(num_prompts=5), r"--num-prompts goes with the suites shapes-geneval2, shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            find_suite(name).task(options)
    with pytest.raises(ValueError, match="should be one of official, geneval2"):
        find_suite("geneval3")


def test_every_suite_reads_options_that_there_are():
    known = set(TaskOptions.__dataclass_fields__)
    assert all(set(suite.options) <= known for suite in SUITES.values())


FILES = ROOT / "examples" / "questions"
"""A hand-made file in each public format, about shapes."""

FIGURES = {
    "geneval2": ["Soft-TIFA AM", "Soft-TIFA GM"],
    "dpg-bench": ["DPG"],
    "genai-bench": ["VQAScore"],
    "unigenbench": ["test points"],
    "t2i-compbench": ["product"],
    "questions": ["Soft-TIFA AM", "Soft-TIFA GM"],
}


@pytest.mark.parametrize("suite", FIGURES)
def test_one_command_for_each_format(suite, model, tmp_path):
    options = ["--questions", FILES / "questions.jsonl"] if suite == "questions" else []
    prompts = FILES / ("prompts.txt" if suite == "questions" else "")
    run("--suite", suite, "--prompts", prompts, *options, "--judge", "verifier", *small(model, tmp_path / "out"))
    (row,) = report(tmp_path / "out")["judge_scores"]
    assert list(row["figures"]) == FIGURES[suite]
    (other,) = report(tmp_path / "out")["runs"]
    assert (other["num_prompts"], other["num_images"]) == (1, 2)


def test_drift_of_the_same_images_and_shards_that_share_drawing_and_judging(model, tmp_path):
    out, shared = tmp_path / "out", tmp_path / "shared"
    options = ["--suite", "shapes", "--num-prompts", "4", "--second-judge", "verifier"]
    run(*options, *small(model, out))
    (row,) = report(out)["judge_scores"]
    assert row["drift"]["accuracy"]["estimate"] == report(out)["runs"][0]["accuracy"]["overall"]["estimate"]
    assert (out / "unsteered" / "00003" / "second_verdicts.json").exists()
    for part in ("0/2", "1/2"):
        run(*options, "--stage", "generate", "--shard", part, *small(model, shared))
    for part in ("1/2", "0/2"):
        run(*options, "--stage", "judge", "--shard", part, *small(model, shared))
    run(*options, "--stage", "judge", "--stage", "report", *small(model, shared))
    assert report(shared)["judge_scores"] == report(out)["judge_scores"]


def test_what_is_judged_is_not_judged_again(model, tmp_path, monkeypatch):
    from fk_reward.benchmarks.questions.shapes import ShapesAnswerer

    out = tmp_path / "out"
    options = ["--suite", "shapes-geneval2", "--num-prompts", "3", *small(model, out)]
    run(*options)
    before = {name: content for name, content in tree(out).items() if not name.startswith("report")}
    monkeypatch.setattr(ShapesAnswerer, "answer", None)
    run(*options)
    assert {name: content for name, content in tree(out).items() if not name.startswith("report")} == before
    monkeypatch.undo()
    (out / "unsteered" / "00001" / "verdicts.json").unlink()  # as after a kill
    run(*options)
    assert {name: content for name, content in tree(out).items() if not name.startswith("report")} == before
