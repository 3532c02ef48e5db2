"""Scores of judges that answer questions, by skill and by group of prompts, and how far two judges differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.drawing import UNSTEERED
from fk_reward.benchmarks.image_results import ImageResult, Place, RunResult
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table, interval_text
from fk_reward.benchmarks.statistics import OVERALL, Ends, Outcome, estimate, estimate_by_task, paired_differences
from fk_reward.durable_files import write_whole

_ALL = "all"  # one stratum: published means are over prompts, whatever their groups


def judge_rows(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """What judges of questions say of each run, as JSON; nothing where the judge gave no scores.

    Returns:
        Rows with `run`, `figures` (name of a score to its mean over the images), `differences` (the same, less the
        unsteered run's, image by image; None without one), `skills` (mean over all questions of a skill, as GenEval 2's
        Soft-TIFA AM is reported), `groups` (group of prompts to the means over its images), `drift` (see `drift_of`).
        Each estimate has its 95 % bootstrap interval over prompts.
    """
    unsteered = next((run for run in runs if run.method == UNSTEERED), None)
    rows = []
    for run in runs:
        names = _figure_names(run)
        baseline = None if run is unsteered else unsteered
        rows.append(
            {
                "run": run.name,
                "figures": {name: estimate(_figure(run, name).values()) for name in names},
                "differences": {name: _difference(run, baseline, name) for name in names},
                "skills": _skills(run),
                "groups": {group: _group_means(run, group, names) for group in _groups(run) if names},
                "drift": drift_of(run),
            }
        )
    return [row for row in rows if row["figures"] or row["drift"]]


def _figure_names(run: RunResult) -> list[str]:
    """The scores that every image has."""
    first = list(run.images[0].figures)
    return [name for name in first if all(name in image.figures for image in run.images)]


def _figure(run: RunResult, name: str) -> dict[Place, Outcome]:
    return {place: _outcome(image, image.figures[name]) for place, image in run.by_place.items()}


def _outcome(image: ImageResult, value: float) -> Outcome:
    return Outcome(float(value), image.prompt, _ALL)


def _difference(run: RunResult, baseline: RunResult | None, name: str) -> Ends | None:
    if baseline is None or name not in _figure_names(baseline):
        return None
    pairs = paired_differences(_figure(run, name), _figure(baseline, name))
    return estimate(pairs) if pairs else None


def _skills(run: RunResult) -> dict[str, Ends]:
    found: dict[str, list[Outcome]] = {}
    for image in run.images:
        for atom in image.atoms:
            for skill in atom["skills"]:
                found.setdefault(skill, []).append(_outcome(image, atom["score"]))
    return {skill: estimate(outcomes) for skill, outcomes in sorted(found.items())}


def _groups(run: RunResult) -> list[str]:
    names = dict.fromkeys(group for image in run.images for group in image.groups)
    # "3 atoms" before "10 atoms", the others by name
    return sorted(names, key=lambda name: (int(name.split()[0]) if name[0].isdigit() else 0, name))


def _group_means(run: RunResult, group: str, names: Sequence[str]) -> dict[str, Ends]:
    inside = [image for image in run.images if group in image.groups]
    return {name: estimate([_outcome(image, image.figures[name]) for image in inside]) for name in names}


def drift_of(run: RunResult) -> dict[str, Any] | None:
    """How far a second judge of the same images is from the first one.

    Returns:
        `accuracy` and `second_accuracy`, the means of the tasks; `difference`, the second less the first; `agreement`,
        the share of images with the same verdict; `scores`, means of the second judge's scores. None where an image has
        no verdict of a second judge.
    """
    pairs = [(image, image.second) for image in run.images if image.second is not None]
    if len(pairs) < len(run.images):
        return None
    first = [image.outcome(image.correct) for image, _ in pairs]
    second = [image.outcome(verdict["correct"]) for image, verdict in pairs]
    change = [image.outcome(float(verdict["correct"]) - float(image.correct)) for image, verdict in pairs]
    same = [image.outcome(verdict["correct"] == image.correct) for image, verdict in pairs]
    names = list(pairs[0][1].get("figures", {}))
    scores = {name: estimate([_outcome(image, verdict["figures"][name]) for image, verdict in pairs]) for name in names}
    return {
        "accuracy": estimate(first),
        "second_accuracy": estimate(second),
        "difference": estimate(change),
        "by_task": {name: ends for name, ends in estimate_by_task(change).items() if name != OVERALL},
        "agreement": estimate(same),
        "scores": scores,
    }


def judge_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that have something in them, the intervals as text.

    Args:
        rows: of `judge_rows`.
    """
    figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    scored = [row for row in rows if row["figures"]]
    last = figures[-1] if figures else ""
    tables = [
        _by_run("Scores of the judge", scored, lambda row: row["figures"], RANGE),
        _by_run("Paired differences of these scores to unsteered", scored, lambda row: row["differences"], CHANGE),
        _by_name("Scores of questions by skill", "skill", scored, lambda row: row["skills"]),
        _by_name(
            f"{last} by group of prompts",
            "group",
            scored,
            lambda row: {group: means[last] for group, means in row["groups"].items()},
        ),
        _drift_table([row for row in rows if row["drift"]]),
    ]
    return [table for table in tables if table.rows]


def _by_run(title: str, rows: Sequence[Mapping[str, Any]], read: Callable[[Any], Any], style: str) -> Table:
    """A line for each run, a column for each score."""
    names = list(dict.fromkeys(name for row in rows for name, ends in read(row).items() if ends is not None))
    cells = [{"run": row["run"], **_texts(read(row), style)} for row in rows]
    columns = (Column("run"), *(Column(name, f"{name} [95 %]") for name in names))
    return Table(title, columns, [cell for cell in cells if len(cell) > 1])


def _by_name(title: str, what: str, rows: Sequence[Mapping[str, Any]], read: Callable[[Any], Any]) -> Table:
    """A line for each name, of which there may be dozens, and a column for each run."""
    names = list(dict.fromkeys(name for row in rows for name in read(row)))
    columns = (Column(what), *(Column(row["run"], f"{row['run']} [95 %]") for row in rows))
    texts = {row["run"]: _texts(read(row), RANGE) for row in rows}
    lines = [{what: name} | {run: text[name] for run, text in texts.items() if name in text} for name in names]
    return Table(title, columns, lines)


def _drift_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row["drift"]["scores"]))
    titles = {
        "accuracy": "GenEval",
        "second_accuracy": "second judge",
        "agreement": "same verdict",
    }
    cells = []
    for row in rows:
        drift = row["drift"]
        texts = _texts({**{name: drift[name] for name in titles}, **drift["scores"]}, RANGE)
        cells.append({"run": row["run"], **texts, **_texts({"difference": drift["difference"]}, CHANGE)})
    columns = [Column(name, f"{title} [95 %]") for name, title in titles.items()]
    columns.insert(2, Column("difference", "difference [95 %]"))
    scores = (Column(name, f"its {name} [95 %]") for name in names)
    return Table("Drift: the same images by a second judge", (Column("run"), *columns, *scores), cells)


def _texts(ends: Mapping[str, Ends | None], style: str) -> dict[str, str]:
    return {name: interval_text(value, style) for name, value in ends.items() if value is not None}


def write_score_lists(run: RunResult) -> list[Path]:
    """Write the scores of all atoms as GenEval 2's scripts read them: `score_lists-0000.json` of the first sample, ...

    A list for each prompt, in the order of the prompts, for `soft_tifa_analysis.py --score_data`.
    """
    samples = sorted({image.sample for image in run.images if image.atoms})
    written = []
    for sample in samples:
        lists = [[atom["score"] for atom in image.atoms] for image in run.images if image.sample == sample]
        written.append(write_whole(run.root / f"score_lists-{sample:04d}.json", json.dumps(lists) + "\n"))
    return written
