"""Figures of a GenEval report: accuracy with intervals, differences to the unsteered run, rewards and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fk_reward.benchmarks.geneval.run_results import PictureResult, RunResult
from fk_reward.benchmarks.geneval.run_settings import UNSTEERED
from fk_reward.benchmarks.uncertainty import clustered_bootstrap

OVERALL = "overall"
"""Name of the mean of the tasks."""

Ends = dict[str, float | None]
"""`estimate`, and the ends of its interval, `low` and `high`: None where they cannot be known, see `summarize`."""


def summarize(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row for each run, as JSON.

    Intervals come from a bootstrap over prompts within tasks, and over the pictures of each drawn prompt. Where a task
    has a single picture nothing is known of how they vary, and neither end of an interval with it is given.

    Args:
        runs: judged; the unsteered one, if there is one, is what the others are compared with, picture by picture.

    Returns:
        Rows with `accuracy` and `difference` (name of a task, or `OVERALL`, to an interval; the second None where
        there is no unsteered run), `correct_prompts` (share with a correct picture), `scores` (reward to an interval),
        `score_differences`, and `cost` of a picture.
    """
    unsteered = next((run for run in runs if run.method == UNSTEERED), None)
    return [_row(run, unsteered) for run in runs]


def _row(run: RunResult, unsteered: RunResult | None) -> dict[str, Any]:
    pictures, compared = run.pictures, None if run is unsteered else unsteered
    right = {picture.index for picture in pictures if picture.correct}
    prompts = {picture.index for picture in pictures}
    return {
        "run": run.name,
        "method": run.method,
        "reward": run.reward,
        "num_particles": run.num_particles,
        "num_prompts": len(prompts),
        "num_pictures": len(pictures),
        "accuracy": _by_task(pictures, [float(picture.correct) for picture in pictures]),
        "difference": _differences(run, compared),
        "correct_prompts": len(right) / len(prompts),
        "scores": {name: _interval(pictures, [p.scores[name] for p in pictures]) for name in _scored(run)},
        "score_differences": {name: _score_difference(run, compared, name) for name in _scored(run)},
        "cost": None if run.cost is None else {k: v / len(pictures) for k, v in vars(run.cost).items()},
    }


def _scored(run: RunResult) -> list[str]:
    """The rewards that have scored every picture."""
    names = dict.fromkeys(name for picture in run.pictures for name in picture.scores)
    return [name for name in names if all(name in picture.scores for picture in run.pictures)]


def _pairs(run: RunResult, other: RunResult) -> list[tuple[PictureResult, PictureResult]]:
    """Pictures of the same prompt and sample."""
    return [(run.by_place[place], other.by_place[place]) for place in run.by_place if place in other.by_place]


def _differences(run: RunResult, other: RunResult | None) -> dict[str, Ends] | None:
    pairs = [] if other is None else _pairs(run, other)
    if not pairs:
        return None
    gains = [float(ours.correct) - float(theirs.correct) for ours, theirs in pairs]
    return _by_task([ours for ours, _ in pairs], gains)


def _score_difference(run: RunResult, other: RunResult | None, name: str) -> Ends | None:
    if other is None or name not in _scored(other):
        return None
    pairs = _pairs(run, other)
    return _interval([ours for ours, _ in pairs], [ours.scores[name] - theirs.scores[name] for ours, theirs in pairs])


def _by_task(pictures: Sequence[PictureResult], values: Sequence[float]) -> dict[str, Ends]:
    """Interval of the mean of the tasks, and of each task."""
    intervals = {OVERALL: _interval(pictures, values)}
    for task in dict.fromkeys(picture.tag for picture in pictures):
        inside = [i for i, picture in enumerate(pictures) if picture.tag == task]
        intervals[task] = _interval([pictures[i] for i in inside], [values[i] for i in inside])
    return intervals


def _interval(pictures: Sequence[PictureResult], values: Sequence[float]) -> Ends:
    prompts, tasks = [picture.prompt for picture in pictures], [picture.tag for picture in pictures]
    interval = vars(clustered_bootstrap(values, prompts, strata=tasks))
    return interval if min(Counter(tasks).values()) > 1 else {**interval, "low": None, "high": None}
