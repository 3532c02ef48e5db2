"""What is known of the runs in a folder: verdicts, scores and costs of their images, and the figures of a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.geneval.generation import Cost
from fk_reward.benchmarks.geneval.layout import MADE, PromptFolder, prompt_folders
from fk_reward.benchmarks.geneval.manifest import NAME, read_manifest, refuse_mixed_runs
from fk_reward.benchmarks.geneval.scoring import read_scores, read_verdicts
from fk_reward.benchmarks.geneval.settings import METHODS, UNSTEERED
from fk_reward.benchmarks.statistics import clustered_bootstrap


@dataclass(frozen=True)
class PictureResult:
    """A judged picture.

    Attributes:
        index: place of its prompt in the suite.
        sample: its number among the pictures of the prompt.
        tag: the task.
        prompt: the prompt.
        path: the file.
        correct: the verdict.
        reason: why not.
        scores: reward -> score.
    """

    index: int
    sample: int
    tag: str
    prompt: str
    path: Path
    correct: bool
    reason: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class RunResult:
    """A judged run.

    Attributes:
        root: its folder.
        manifest: what it depends on; None for pictures that something else made.
        judge: what the verdicts depend on.
        pictures: in the order of prompts and samples.
        cost: of all pictures; None where it was not measured.
    """

    root: Path
    manifest: Mapping[str, Any] | None
    judge: Mapping[str, Any]
    pictures: tuple[PictureResult, ...]
    cost: Cost | None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.resolve().name

    @property
    def method(self) -> str:
        """How the pictures were made, `other` where nothing says."""
        return "other" if self.manifest is None else self.manifest["settings"]["method"]

    @property
    def reward(self) -> str | None:
        """The reward that steers or selects."""
        return None if self.manifest is None else self.manifest["settings"]["reward"]

    @property
    def num_particles(self) -> int | None:
        """K."""
        return None if self.manifest is None else self.manifest["settings"]["steering"]["num_particles"]

    @cached_property
    def by_place(self) -> dict[tuple[int, int], PictureResult]:
        """The pictures by prompt and sample."""
        return {(picture.index, picture.sample): picture for picture in self.pictures}


def find_runs(folder: Path) -> list[Path]:
    """The folders of the runs in a folder, or the folder itself where its pictures lie there, whoever made them.

    Raises:
        NotADirectoryError: no such folder.
        FileNotFoundError: no run in it.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"There is no folder {folder}.")
    if (folder / NAME).exists() or any(path.name.isdecimal() and path.is_dir() for path in folder.iterdir()):
        return [folder]
    runs = [path.parent for path in sorted(folder.glob(f"*/{NAME}"))]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no run and no pictures in GenEval's layout (00000/samples/0000.png).")
    return runs


def read_runs(folder: Path) -> list[RunResult]:
    """All judged runs of a folder: unsteered first, then by K, method and reward.

    Raises:
        FileNotFoundError: no run.
        ValueError: pictures that are not judged, runs that cannot be compared, or verdicts of different judges.
    """
    refuse_mixed_runs(folder)
    runs = [read_run(root) for root in find_runs(folder)]
    judges = {json.dumps(run.judge, sort_keys=True) for run in runs}
    if len(judges) > 1:
        raise ValueError(f"The runs in {folder} were judged by different judges: {' and '.join(sorted(judges))}.")
    return sorted(runs, key=_place)


def _place(run: RunResult) -> tuple[Any, ...]:
    order = METHODS.index(run.method) if run.method in METHODS else len(METHODS)
    return (run.method != UNSTEERED, run.num_particles or 0, order, run.reward or "")


def read_run(root: Path) -> RunResult:
    """A judged run.

    Raises:
        FileNotFoundError: no pictures.
        ValueError: pictures that are not judged.
    """
    folders = prompt_folders(root)
    manifest = read_manifest(root) if (root / NAME).exists() else None
    if manifest is not None and len(folders) != manifest["suite"]["num_prompts"]:
        raise ValueError(
            f"{root} has {len(folders)} of {manifest['suite']['num_prompts']} prompts: generate the others."
        )
    notes = [read_verdicts(folder) for folder in folders]
    costs = [note for folder in folders if (note := folder.read_note(MADE)) is not None]
    return RunResult(
        root=root,
        manifest=manifest,
        judge=_judge_of(root, notes),
        pictures=tuple(p for pair in zip(folders, notes, strict=True) for p in _pictures(*pair)),
        cost=sum((Cost(**note) for note in costs), Cost()) if len(costs) == len(folders) else None,
    )


def _judge_of(root: Path, notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judges = {json.dumps(note["judge"], sort_keys=True) for note in notes}
    if len(judges) > 1:
        raise ValueError(f"{root} was judged by different judges: judge it again.")
    return json.loads(judges.pop())


def _pictures(folder: PromptFolder, note: Mapping[str, Any]) -> list[PictureResult]:
    metadata, scores = folder.read_metadata(), read_scores(folder)
    return [
        PictureResult(
            index=folder.index,
            sample=sample,
            tag=metadata["tag"],
            prompt=metadata["prompt"],
            path=path,
            correct=verdict["correct"],
            reason=verdict["reason"],
            scores={name: values[sample] for name, values in scores.items()},
        )
        for sample, (path, verdict) in enumerate(zip(folder.picture_paths(), note["verdicts"], strict=True))
    ]


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
