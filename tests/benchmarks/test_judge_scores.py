"""Scores of a judge of questions against GenEval 2's analysis by hand, and the drift between two judges."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import gmean

from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_results import read_runs
from fk_reward.benchmarks.image_store import prompt_folders
from fk_reward.benchmarks.judge_scores import drift_of, judge_rows
from fk_reward.benchmarks.judging import SECOND, judge_missing
from fk_reward.benchmarks.questions.answerers import Answered
from fk_reward.benchmarks.questions.atoms import Atom, question_record
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, QuestionJudge
from tests.benchmarks.image_stage import NUM_SAMPLES, SETTINGS, StubJudge, write_run, write_two_runs

SKILLS = (("count", "object"), ("attribute",), ("count", "attribute", "object"), ("object", "object"))
ATOMS = (3, 10, 10, 10)


def make_record(place):
    atoms = [Atom(f"{skill} {place}?", skills=(skill,), number=n) for n, skill in enumerate(SKILLS[place], 1)]
    group = f"{ATOMS[place]} atoms"
    return question_record(f"prompt {place}", atoms, tag=group, groups=[group])


RECORDS = tuple(make_record(place) for place in range(4))


class Pseudorandom:
    """Probabilities that depend on the image's colour and the question."""

    identity = {"model": "pseudorandom"}

    def answer(self, images, asked):
        values = [probability(images[line.place].getpixel((0, 0)), line.question) for line in asked]
        return [Answered(value, value > 0.5, "No") for value in values]


def probability(pixel, question):
    return (sum(pixel) * 7 + len(question) * 31 + ord(question[0])) % 97 / 97 + 0.003


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    judge = QuestionJudge(Pseudorandom(), SOFT_TIFA, known=[])
    judge.self_test = lambda: None
    write_run(folder, SETTINGS.unsteered(), judge=judge, records=RECORDS)
    write_run(folder, SETTINGS, shift=20, judge=judge, records=RECORDS)
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return judge_rows(read_runs(out))


def verdicts_of(root):
    """Lists of the atoms' scores and records of all images of a run, read from its files."""
    found = []
    for folder in prompt_folders(root):
        note = json.loads((folder.path / "verdicts.json").read_text())
        record = folder.read_metadata()
        found += [([atom["score"] for atom in verdict["atoms"]], record) for verdict in note["verdicts"]]
    return found


def test_means_are_those_of_the_official_analysis(out, rows):
    """`evaluation.py` and `soft_tifa_analysis.py` of GenEval 2, in our words: means over prompts, over the atoms of a
    skill, and over the prompts of an atomicity."""
    lists = verdicts_of(out / "unsteered")
    assert len(lists) == 4 * NUM_SAMPLES
    row = rows[0]
    assert row["figures"]["Soft-TIFA AM"]["estimate"] == pytest.approx(np.mean([np.mean(s) for s, _ in lists]))
    assert row["figures"]["Soft-TIFA GM"]["estimate"] == pytest.approx(np.mean([gmean(s) for s, _ in lists]))
    skills, atomicity = defaultdict(list), defaultdict(list)
    for scores, record in lists:
        atomicity[record["tag"]].append(gmean(scores))
        for score, atom in zip(scores, record["atoms"], strict=True):
            skills[atom["skills"][0]].append(score)
    assert {name: ends["estimate"] for name, ends in row["skills"].items()} == pytest.approx(
        {name: np.mean(values) for name, values in skills.items()}
    )
    found = {group: means["Soft-TIFA GM"]["estimate"] for group, means in row["groups"].items()}
    assert found == pytest.approx({name: np.mean(values) for name, values in atomicity.items()})
    assert list(found) == ["3 atoms", "10 atoms"]


def test_prompts_count_alike_whatever_their_groups(rows):
    """A group of one prompt and one of three must not count alike: that is not the published figure."""
    groups = [means["Soft-TIFA GM"]["estimate"] for means in rows[0]["groups"].values()]
    assert abs(np.mean(groups) - rows[0]["figures"]["Soft-TIFA GM"]["estimate"]) > 0.01


def test_differences_are_paired(out, rows):
    plain, steered = (verdicts_of(out / name) for name in ("unsteered", "fk-4-brightness"))
    expected = np.mean([gmean(a) - gmean(b) for (a, _), (b, _) in zip(steered, plain, strict=True)])
    assert rows[1]["differences"]["Soft-TIFA GM"]["estimate"] == pytest.approx(expected)
    assert rows[0]["differences"] == {"Soft-TIFA AM": None, "Soft-TIFA GM": None}


def test_the_report_has_the_tables_behind_the_accuracies_and_the_official_score_lists(out):
    report = write_report(out)
    titles = [table.title for table in report.tables]
    assert titles[:7] == [
        "Accuracy",
        "Paired differences of accuracy to unsteered",
        "Scores of the judge",
        "Paired differences of these scores to unsteered",
        "Scores of questions by skill",
        "Soft-TIFA GM by group of prompts",
        "Mean rewards",
    ]
    assert report.title == "Benchmark shapes: a painter"
    lists = json.loads((out / "unsteered" / "score_lists-0001.json").read_text())
    assert lists == [scores for scores, _ in verdicts_of(out / "unsteered")[1::NUM_SAMPLES]]
    summary = json.loads((out / "report.json").read_text())
    assert [row["run"] for row in summary["judge_scores"]] == ["unsteered", "fk-4-brightness"]
    assert "| count |" in (out / "report.md").read_text()


def test_without_such_a_judge_nothing_changes(tmp_path):
    write_two_runs(tmp_path)
    write_report(tmp_path)
    assert judge_rows(read_runs(tmp_path)) == []
    assert "judge_scores" not in json.loads((tmp_path / "report.json").read_text())


class Severe(StubJudge):
    """Agrees with the stub but on dogs, which it finds wrong; its verdicts have a score."""

    def judge_image(self, record, image):
        verdict = super().judge_image(record, image)
        right = verdict.correct and "dog" not in record["prompt"]
        return replace(verdict, correct=right, figures={"Soft-TIFA GM": 0.5 * right})


def judge_twice(out, *, num=None):
    for root in sorted(path for path in out.iterdir() if path.is_dir()):
        folders = prompt_folders(root)[:num]
        list(judge_missing(folders, Severe({"judge": "severe"}), note=SECOND))


def test_drift_by_hand(tmp_path):
    write_two_runs(tmp_path)
    judge_twice(tmp_path)
    unsteered, steered = (row["drift"] for row in judge_rows(read_runs(tmp_path)))
    # unsteered: cows right in one of two samples by both; dogs right in both samples by the first only
    assert unsteered["accuracy"]["estimate"] == 0.75
    assert unsteered["second_accuracy"]["estimate"] == 0.25
    assert unsteered["difference"]["estimate"] == -0.5
    assert unsteered["agreement"]["estimate"] == 0.5
    assert unsteered["scores"]["Soft-TIFA GM"]["estimate"] == 0.125
    assert steered["accuracy"]["estimate"] == 1.0
    tables = {table.title: table for table in write_report(tmp_path).tables}
    (first, _) = tables["Drift: the same images by a second judge"].rows
    assert first["difference"].startswith("-0.500 [")
    assert unsteered["by_task"]["single_object"]["estimate"] == -0.5


def test_half_a_second_judgement_is_none(tmp_path):
    write_two_runs(tmp_path)
    judge_twice(tmp_path, num=2)
    assert [drift_of(run) for run in read_runs(tmp_path)] == [None, None]
