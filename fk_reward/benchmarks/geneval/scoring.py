"""Judging and scoring the pictures of a run: notes beside them, and `results.jsonl` in the official format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image

from fk_reward.benchmarks.geneval.generation import refuse_other_record
from fk_reward.benchmarks.geneval.judge import Verdict
from fk_reward.benchmarks.geneval.layout import PromptFolder, prompt_folders
from fk_reward.durable_files import write_whole

if TYPE_CHECKING:
    from fk_reward.rewards import Reward

VERDICTS, SCORES = "verdicts", "scores"
"""Names of the notes."""


class Judge(Protocol):
    """Whoever decides which pictures are correct."""

    def judge_images(self, records: Sequence[dict[str, Any]], images: Sequence[Image.Image], /) -> Sequence[Verdict]:
        """One verdict for each picture."""

    def self_test(self) -> None:
        """Raise unless pictures with known verdicts get them."""


def complete_folders(root: Path, records: Sequence[Mapping[str, Any]]) -> list[PromptFolder]:
    """The prompts' folders of a run that has all prompts of a suite, and no others.

    Raises:
        FileNotFoundError: no such folder, a prompt without pictures or without its record.
        ValueError: prompts of another suite, or prompts that are missing.
    """
    folders = prompt_folders(root)
    surplus = [folder for folder in folders if folder.index >= len(records)]
    if surplus:
        raise ValueError(f"{surplus[0].path} is beyond the suite's {len(records)} prompts: it is of another suite.")
    for folder in folders:
        refuse_other_record(folder, records[folder.index])
        folder.picture_paths()
    if len(folders) < len(records):
        missing = min(set(range(len(records))) - {folder.index for folder in folders})
        raise ValueError(
            f"{root} has {len(folders)} of the suite's {len(records)} prompts, {missing:05d} is missing: finish "
            "generating, or name the suite's prompts with a file."
        )
    return folders


def judge_missing(
    folders: Sequence[PromptFolder],
    judge: Judge,
    *,
    identity: Mapping[str, Any],
    batch_size: int = 16,
    self_test: bool = True,
) -> Iterator[tuple[int, int]]:
    """Judge the prompts that have no verdict of this judge, after the judge has passed its self-test.

    Args:
        folders: the prompts.
        judge: the judge.
        identity: what its verdicts depend on; those of another one do not count.
        batch_size: pictures judged together, a prompt's at least.
        self_test: whether the judge must pass it.

    Yields:
        After each batch: how many prompts are judged, how many there were to judge.
    """
    todo = [folder for folder in folders if _verdicts(folder, identity) is None]
    if todo and self_test:
        judge.self_test()
    done = 0
    for batch in _batches(todo, batch_size):
        pictures = [folder.read_pictures() for folder in batch]
        records = [folder.read_metadata() for folder in batch]
        repeated = [record for record, group in zip(records, pictures, strict=True) for _ in group]
        verdicts = judge.judge_images(repeated, [picture for group in pictures for picture in group])
        if len(verdicts) != len(repeated):
            raise ValueError(f"The judge gave {len(verdicts)} verdicts on {len(repeated)} pictures.")
        said = iter(verdicts)
        for folder, group in zip(batch, pictures, strict=True):
            own = [asdict(verdict) for verdict in islice(said, len(group))]
            folder.write_note(VERDICTS, {"judge": dict(identity), "verdicts": own})
        done += len(batch)
        yield done, len(todo)


def _batches(folders: Sequence[PromptFolder], batch_size: int) -> Iterator[list[PromptFolder]]:
    batch: list[PromptFolder] = []
    size = 0
    for folder in folders:
        more = len(folder.picture_paths())
        if batch and size + more > batch_size:
            yield batch
            batch, size = [], 0
        batch.append(folder)
        size += more
    if batch:
        yield batch


@torch.no_grad()
def score_missing(folders: Sequence[PromptFolder], name: str, reward: Reward) -> Iterator[tuple[int, int]]:
    """Score the prompts that have no scores by a reward.

    Args:
        folders: the prompts.
        name: of the reward.
        reward: the reward.

    Yields:
        After each prompt: how many are scored, how many there were to score.
    """
    todo = [folder for folder in folders if name not in read_scores(folder)]
    for done, folder in enumerate(todo, start=1):
        scores = reward(folder.read_pictures(), folder.read_metadata()["prompt"])
        folder.write_note(SCORES, {"scores": {**read_scores(folder), name: scores.tolist()}})
        yield done, len(todo)


def read_scores(folder: PromptFolder) -> dict[str, list[float]]:
    """Scores of a prompt's pictures by the name of the reward."""
    return (folder.read_note(SCORES) or {}).get("scores", {})


def _verdicts(folder: PromptFolder, identity: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    note = folder.read_note(VERDICTS)
    return note if note is not None and identity in (None, note["judge"]) else None


def read_verdicts(folder: PromptFolder) -> dict[str, Any]:
    """The judge and its verdicts on a prompt's pictures.

    Raises:
        ValueError: they have not been judged, or were changed since.
    """
    note = _verdicts(folder)
    if note is None:
        raise ValueError(f"The pictures of {folder.path} are not judged, or were changed since: judge them first.")
    return note


def write_results(root: Path) -> Path:
    """Write `results.jsonl`, a line for each picture with the keys of GenEval's `evaluate_images.py`.

    Its `summary_scores.py` reads it.

    Raises:
        ValueError: a prompt that has not been judged.
    """
    lines = []
    for folder in prompt_folders(root):
        metadata, verdicts = folder.read_metadata(), read_verdicts(folder)["verdicts"]
        known = {"tag": metadata["tag"], "prompt": metadata["prompt"]}
        for path, verdict in zip(folder.picture_paths(), verdicts, strict=True):
            line = {"filename": path.relative_to(root).as_posix(), **known, **verdict}
            texts = {"metadata": json.dumps(metadata), "details": json.dumps(verdict["details"])}
            lines.append(json.dumps({**line, **texts}))
    write_whole(root / "results.jsonl", "".join(f"{line}\n" for line in lines))
    return root / "results.jsonl"
