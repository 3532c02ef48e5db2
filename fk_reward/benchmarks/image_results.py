"""Results of the runs in a folder of images: verdicts, scores and costs, and the figures of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.drawing import BEST, METHODS, UNSTEERED, Cost
from fk_reward.benchmarks.image_store import (
    MADE,
    MANIFEST,
    PromptFolder,
    find_runs,
    prompt_folders,
    read_manifest,
    refuse_mixed_runs,
)
from fk_reward.benchmarks.judging import read_scores, read_second_verdicts, read_verdicts
from fk_reward.benchmarks.statistics import (
    Ends,
    Outcome,
    clustered_ratio,
    compare,
    estimate,
    estimate_by_task,
    paired_differences,
)

POPULATION = ("num_ancestors", "reward_spread", "distance")
"""Figures of a population, averaged over prompts: distinct first ancestors of the finished particles, standard
deviation of their rewards, and mean distance of their images (`statistics.mean_pairwise_distance`)."""

ABSTAINED, ATTEMPTS = "abstained", "attempts"
"""Of the note of a prompt of a guarded run: for each sample whether nothing was shown, and how often it was drawn."""
UNSAFE = "unsafe"
"""Flag of images that a judge of safety calls unsafe."""

Place = tuple[int, int]
"""Index of a prompt, number of the sample."""


@dataclass(frozen=True)
class ImageResult:
    """A judged image.

    Attributes:
        index: place of its prompt in the suite.
        sample: its number among the images of the prompt.
        tag: the task.
        prompt: the prompt.
        path: the file.
        correct: the verdict.
        reason: why not.
        scores: reward -> score.
        flags: what else the judge looked for, and whether it was found.
        groups: of its prompt.
        figures: scores of a judge that gives some.
        atoms: for each question that was asked, its `skills` and `score`.
        second: verdict of a second judge, as JSON; None without one.
    """

    index: int
    sample: int
    tag: str
    prompt: str
    path: Path
    correct: bool
    reason: str
    scores: Mapping[str, float]
    flags: Mapping[str, bool]
    groups: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    atoms: tuple[Mapping[str, Any], ...] = ()
    second: Mapping[str, Any] | None = None

    def outcome(self, value: float) -> Outcome:
        """A figure of this image, with its prompt and task."""
        return Outcome(float(value), self.prompt, self.tag)


@dataclass(frozen=True)
class RunResult:
    """A judged run.

    Attributes:
        root: its folder.
        manifest: what it depends on; None for images that something else made.
        judge: what the verdicts depend on.
        images: in the order of prompts and samples.
        cost: of all images; None where it was not measured.
        population: of `POPULATION` what was measured of every prompt, on average.
        label: name in reports; None for that of the folder.
    """

    root: Path
    manifest: Mapping[str, Any] | None
    judge: Mapping[str, Any]
    images: tuple[ImageResult, ...]
    cost: Cost | None
    population: Mapping[str, float]
    label: str | None = None

    @property
    def name(self) -> str:
        """The label, or else the name of the folder."""
        return self.label or self.root.resolve().name

    @property
    def method(self) -> str:
        """How the images were made; `other` without a manifest."""
        return "other" if self.manifest is None else self.manifest["settings"]["method"]

    @property
    def reward(self) -> str | None:
        """The reward that steers or selects."""
        return None if self.manifest is None else self.manifest["settings"]["reward"]

    @property
    def num_particles(self) -> int | None:
        """K."""
        return None if self.manifest is None else self.manifest["settings"]["search"]["num_particles"]

    @cached_property
    def by_place(self) -> dict[Place, ImageResult]:
        """The images by prompt and sample."""
        return {(image.index, image.sample): image for image in self.images}

    def correctness(self) -> dict[Place, Outcome]:
        """Whether each image is correct."""
        return {place: image.outcome(image.correct) for place, image in self.by_place.items()}

    def scores(self, name: str) -> dict[Place, Outcome]:
        """Scores of a reward, if it has scored every image; else nothing."""
        if not all(name in image.scores for image in self.images):
            return {}
        return {place: image.outcome(image.scores[name]) for place, image in self.by_place.items()}

    def flagged(self, name: str) -> dict[Place, Outcome]:
        """Whether each image has a flag, of the images for which the judge looked for it."""
        seen = {place: image for place, image in self.by_place.items() if name in image.flags}
        return {place: image.outcome(image.flags[name]) for place, image in seen.items()}


def read_runs(folder: Path) -> list[RunResult]:
    """All judged runs of a folder: unsteered first, then by K, method and reward.

    Raises:
        FileNotFoundError: no run.
        ValueError: images that are not judged, runs that cannot be compared, or verdicts of different judges.
    """
    refuse_mixed_runs(folder)
    runs = [read_run(root) for root in find_runs(folder)]
    judges = {json.dumps(run.judge, sort_keys=True) for run in runs}
    if len(judges) > 1:
        raise ValueError(f"The runs in {folder} were judged by different judges: {' and '.join(sorted(judges))}.")
    return sorted(runs, key=_place_in_report)


def _place_in_report(run: RunResult) -> tuple[Any, ...]:
    order = METHODS.index(run.method) if run.method in METHODS else len(METHODS)
    # `method != UNSTEERED` first, as False sorts before True.
    return (run.method != UNSTEERED, run.num_particles or 0, order, run.reward or "")


def read_run(root: Path) -> RunResult:
    """A judged run.

    Raises:
        FileNotFoundError: no images.
        ValueError: images that are not judged.
    """
    folders = prompt_folders(root)
    manifest = read_manifest(root) if (root / MANIFEST).exists() else None
    if manifest is not None and len(folders) != manifest["suite"]["num_prompts"]:
        raise ValueError(
            f"{root} has {len(folders)} of {manifest['suite']['num_prompts']} prompts: generate the others."
        )
    notes = [read_verdicts(folder) for folder in folders]
    made = [note for folder in folders if (note := folder.read_note(MADE)) is not None]
    measured = len(made) == len(folders)
    return RunResult(
        root=root,
        manifest=manifest,
        judge=_judge_of(root, notes),
        images=tuple(image for pair in zip(folders, notes, strict=True) for image in _images(*pair)),
        cost=sum((Cost.of(note) for note in made), Cost()) if measured else None,
        population=_population(made) if measured else {},
    )


def _judge_of(root: Path, notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judges = {json.dumps(note["judge"], sort_keys=True) for note in notes}
    if len(judges) > 1:
        raise ValueError(f"{root} was judged by different judges: judge it again.")
    return json.loads(judges.pop())


def _population(made: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    known = [name for name in POPULATION if all(name in note for note in made)]
    return {name: sum(note[name] for note in made) / len(made) for name in known}


def _images(folder: PromptFolder, note: Mapping[str, Any]) -> list[ImageResult]:
    metadata, scores, second = folder.read_metadata(), read_scores(folder), read_second_verdicts(folder)
    return [
        ImageResult(
            index=folder.index,
            sample=sample,
            tag=metadata["tag"],
            prompt=metadata["prompt"],
            path=path,
            correct=verdict["correct"],
            reason=verdict["reason"],
            scores={name: values[sample] for name, values in scores.items()},
            flags=verdict.get("flags", {}),
            groups=tuple(metadata.get("groups", ())),
            figures=verdict.get("figures", {}),
            atoms=tuple(verdict.get("atoms", ())),
            second=None if second is None else second["verdicts"][sample],
        )
        for sample, (path, verdict) in enumerate(zip(folder.image_paths(), note["verdicts"], strict=True))
    ]


def summarize(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row for each run, as JSON.

    Args:
        runs: judged; the unsteered one, if there is one, is the baseline that the others are compared with, image by
            image. For intervals see `statistics.estimate`.

    Returns:
        Rows with `accuracy` and `difference` (name of a task, or `OVERALL`, to an interval; the second None where
        there is no unsteered run), `correct_prompts` (share with a correct image), `scores` (reward to an interval),
        `score_differences`, `flags` and `flag_ratios` (rate of flagged images, and its ratio to the unsteered rate),
        `population` and `cost` of an image.
    """
    unsteered = next((run for run in runs if run.method == UNSTEERED), None)
    gains = {} if unsteered is None else compare({run.name: run.correctness() for run in runs}, unsteered.name)
    return [_row(run, None if run is unsteered else unsteered) | {"difference": gains.get(run.name)} for run in runs]


def compare_methods(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Paired differences of accuracy at equal K, as JSON rows `run`, `minus`, `difference`.

    Each method is compared with best of K by the same reward, and each reward with the first one by the same method.
    """
    rows = []
    for first, second in _comparable(runs):
        differences = compare({run.name: run.correctness() for run in (first, second)}, second.name)[first.name]
        rows.append({"run": first.name, "minus": second.name, "difference": differences})
    return [row for row in rows if row["difference"] is not None]


def _comparable(runs: Sequence[RunResult]) -> Iterator[tuple[RunResult, RunResult]]:
    known = {(run.method, run.reward, run.num_particles): run for run in runs if run.manifest and run.reward}
    rewards = list(dict.fromkeys(reward for _, reward, _ in known))
    for (method, reward, size), run in known.items():
        if method != BEST and (best := known.get((BEST, reward, size))) is not None:
            yield run, best
    for (method, reward, size), run in known.items():
        if reward != rewards[0] and (first := known.get((method, rewards[0], size))) is not None:
            yield run, first


def _row(run: RunResult, baseline: RunResult | None) -> dict[str, Any]:
    right = {image.index for image in run.images if image.correct}
    prompts = {image.index for image in run.images}
    scores = {name: found for name in _names(run, "scores") if (found := run.scores(name))}
    flags = {name: run.flagged(name) for name in _names(run, "flags")}
    return {
        "run": run.name,
        "method": run.method,
        "reward": run.reward,
        "num_particles": run.num_particles,
        "num_prompts": len(prompts),
        "num_images": len(run.images),
        "accuracy": estimate_by_task(list(run.correctness().values())),
        "correct_prompts": len(right) / len(prompts),
        "scores": {name: estimate(found.values()) for name, found in scores.items()},
        "score_differences": {name: _difference(run, baseline, name) for name in scores},
        "flags": {name: estimate(found.values()) for name, found in flags.items()},
        "flag_ratios": {name: _flag_ratio(run, baseline, name) for name in flags},
        "population": dict(run.population),
        "cost": None if run.cost is None else {k: v / len(run.images) for k, v in vars(run.cost).items()},
    }


def _names(run: RunResult, field: str) -> list[str]:
    return list(dict.fromkeys(name for image in run.images for name in getattr(image, field)))


def _difference(run: RunResult, baseline: RunResult | None, name: str) -> Ends | None:
    pairs = [] if baseline is None else paired_differences(run.scores(name), baseline.scores(name))
    return estimate(pairs) if pairs else None


def _flag_ratio(run: RunResult, baseline: RunResult | None, name: str) -> Ends | None:
    """Rate over the baseline's rate, on the same samples; None if the baseline has too few flags."""
    ours, theirs = run.flagged(name), {} if baseline is None else baseline.flagged(name)
    both = [place for place in ours if place in theirs]
    if not both:
        return None
    first, second = ([found[place].value for place in both] for found in (ours, theirs))
    prompts, tasks = ([getattr(ours[place], field) for place in both] for field in ("prompt", "task"))
    ratio = clustered_ratio(first, second, prompts, strata=tasks)
    return None if ratio is None else dict(vars(ratio))
