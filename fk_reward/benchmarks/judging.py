"""Judge and score the images of a run: notes beside them, and `results.jsonl` in GenEval's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fk_reward.benchmarks.image_store import (
    MANIFEST,
    PromptFolder,
    complete_folders,
    find_runs,
    prompt_folders,
    read_manifest,
)
from fk_reward.benchmarks.runner import Progress, Share, in_batches
from fk_reward.benchmarks.task import Judge, Task
from fk_reward.durable_files import write_whole
from fk_reward.rewards import load_reward

if TYPE_CHECKING:
    from fk_reward.rewards import Reward

VERDICTS, SCORES, SECOND = "verdicts", "scores", "second_verdicts"
"""Names of the notes; the last one is that of a second judge, where a task has one."""

Record = Mapping[str, Any]


def judge_runs(
    out: Path, task: Task[Record], *, share: Share, device: str, self_test: bool = True
) -> Iterator[Progress]:
    """Judge the images of all runs that are not judged yet, and write `results.jsonl` of each.

    Args:
        out: holds the runs, or is itself a folder of images in GenEval's layout.
        task: whose judge decides.
        share: the part of this process.
        device: of the judge.
        self_test: whether the judge must pass its self-test; where not, its verdicts say so.

    Raises:
        FileNotFoundError: no runs, or files of them are missing.
        ValueError: images of another suite, unfinished runs, damaged images.
        SelfTestError: the judge has not passed its self-test.
    """
    runs = {root: complete_folders(root, task.samples) for root in find_runs(out)}
    # After the folders: what is missing there is reported before models are loaded. One judge in memory at a time.
    for note, load in ((VERDICTS, task.judge), (SECOND, task.second_judge)):
        if load is None:
            continue
        judge = load(device)
        for root, folders in runs.items():
            label = f"{root.name}: {note.replace('_', ' ')}"
            yield from judge_missing(share.part(folders), judge, label=label, self_test=self_test, note=note)
        del judge
    share.wait()  # `results.jsonl` holds the verdicts of all processes
    if share.leads:
        for root in runs:
            write_results(root)


def score_runs(out: Path, names: Sequence[str], *, task: Task[Record], share: Share, device: str) -> Iterator[Progress]:
    """Score the images of all runs by rewards that have not scored them yet, one reward in memory at a time.

    Args:
        out: as for `judge_runs`.
        names: of held-out rewards; those that steer or select some run are added.
        task: whose prompts the images are of.
        share: the part of this process.
        device: of the rewards.
    """
    runs = {root: share.part(complete_folders(root, task.samples)) for root in find_runs(out)}
    manifests = [read_manifest(root) for root in runs if (root / MANIFEST).exists()]
    used = [manifest["settings"]["reward"] for manifest in manifests]
    for name in dict.fromkeys(name for name in [*used, *names] if name is not None):
        # A reward that has nothing left to score is not loaded.
        if any(name not in read_scores(folder) for folders in runs.values() for folder in folders):
            reward = load_reward(name).to(device)
            for root, folders in runs.items():
                yield from score_missing(folders, name, reward, label=f"{root.name}: {name}")
    share.wait()


def judge_missing(
    folders: Sequence[PromptFolder],
    judge: Judge,
    *,
    label: str = "",
    batch_size: int = 16,
    self_test: bool = True,
    note: str = VERDICTS,
) -> Iterator[Progress]:
    """Judge the prompts that have no verdict of this judge, after the judge has passed its self-test.

    Args:
        folders: the prompts.
        judge: the judge; verdicts of one with another identity do not count.
        label: of the progress.
        batch_size: images judged together, a prompt's at least.
        self_test: whether the judge must pass it; where not, that belongs to its identity.
        note: where its verdicts are kept, `VERDICTS` or `SECOND`.

    Yields:
        After each batch: how many prompts are judged.
    """
    identity = {**judge.identity, **({} if self_test else {"self-test": "skipped"})}
    todo = [folder for folder in folders if _verdicts(folder, identity, note) is None]
    if todo and self_test:
        judge.self_test()

    def judge_batch(batch: Sequence[PromptFolder]) -> None:
        images = [folder.read_images() for folder in batch]
        records = [folder.read_metadata() for folder in batch]
        repeated = [record for record, group in zip(records, images, strict=True) for _ in group]
        verdicts = judge.judge_images(repeated, [image for group in images for image in group])
        if len(verdicts) != len(repeated):
            raise ValueError(f"The judge gave {len(verdicts)} verdicts on {len(repeated)} images.")
        rest = iter(verdicts)
        for folder, group in zip(batch, images, strict=True):
            own = [verdict.to_dict() for verdict in islice(rest, len(group))]
            folder.write_note(note, {"judge": identity, "verdicts": own})

    yield from in_batches(label, todo, judge_batch, batch_size=batch_size, size_of=lambda f: len(f.image_paths()))


@torch.no_grad()
def score_missing(folders: Sequence[PromptFolder], name: str, reward: Reward, *, label: str = "") -> Iterator[Progress]:
    """Score the prompts that have no scores by a reward.

    Args:
        folders: the prompts.
        name: of the reward.
        reward: the reward.
        label: of the progress.

    Yields:
        After each prompt: how many are scored.
    """
    todo = [folder for folder in folders if name not in read_scores(folder)]

    def score(batch: Sequence[PromptFolder]) -> None:
        for folder in batch:
            scores = reward(folder.read_images(), folder.read_metadata()["prompt"])
            folder.write_note(SCORES, {"scores": {**read_scores(folder), name: scores.tolist()}})

    yield from in_batches(label, todo, score)


def read_scores(folder: PromptFolder) -> dict[str, list[float]]:
    """Scores of a prompt's images by the name of the reward."""
    return (folder.read_note(SCORES) or {}).get("scores", {})


def read_verdicts(folder: PromptFolder) -> dict[str, Any]:
    """The judge and its verdicts on a prompt's images.

    Raises:
        ValueError: they have not been judged, or were changed since.
    """
    note = _verdicts(folder)
    if note is None:
        raise ValueError(f"The images of {folder.path} are not judged, or were changed since: judge them first.")
    return note


def read_second_verdicts(folder: PromptFolder) -> dict[str, Any] | None:
    """The second judge and its verdicts on a prompt's images; None where there are none."""
    return _verdicts(folder, note=SECOND)


def _verdicts(
    folder: PromptFolder, identity: Mapping[str, Any] | None = None, note: str = VERDICTS
) -> dict[str, Any] | None:
    found = folder.read_note(note)
    return found if found is not None and identity in (None, found["judge"]) else None


def write_results(root: Path) -> Path:
    """Write `results.jsonl`, a line for each image with the keys of GenEval's `evaluate_images.py`.

    Its `summary_scores.py` reads it.

    Raises:
        ValueError: a prompt that has not been judged.
    """
    lines = []
    for folder in prompt_folders(root):
        metadata, verdicts = folder.read_metadata(), read_verdicts(folder)["verdicts"]
        known = {"tag": metadata["tag"], "prompt": metadata["prompt"]}
        for path, verdict in zip(folder.image_paths(), verdicts, strict=True):
            line = {"filename": path.relative_to(root).as_posix(), **known, **verdict}
            # The official script writes these two as strings of JSON.
            texts = {"metadata": json.dumps(metadata), "details": json.dumps(verdict["details"])}
            lines.append(json.dumps({**line, **texts}))
    write_whole(root / "results.jsonl", "".join(f"{line}\n" for line in lines))
    return root / "results.jsonl"
