"""What a reward knows of predictions, by noise level: accuracy on pairs and rank correlation within a prompt.

Recorded predictions (`prediction_recording`) are scored by each reward as it stands and by its judge of the level; what
they are held against is the score of the finished image, by whoever gave it: the plain reward, another, a verifier.

Letters of shapes: P prompts, S seeds of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fk_reward.benchmarks.report import RANGE, Column, Report, Table, markdown_report, write_json
from fk_reward.benchmarks.runner import Progress
from fk_reward.benchmarks.statistics import clustered_bootstrap, clustered_ratio
from fk_reward.durable_files import write_whole
from fk_reward.rewards import Reward
from fk_reward.search.replay.records import Floats, rank_correlations
from fk_reward.training.predictions import FINISHED, PredictionRecords

COLUMNS = (
    Column("level", "noise level", "{:.3f}"),
    Column("judge", "judge"),
    Column("reference", "finished by"),
    Column("pairs", "pairs in order [95 %]", RANGE, ("pairs_low", "pairs_high")),
    Column("rank", "rank correlation [95 %]", RANGE, ("rank_low", "rank_high")),
    Column("num_pairs", "pairs", "{:d}"),
)


@dataclass(frozen=True, eq=False)
class LevelScores:
    """Scores of the predictions of one level by one judge.

    Attributes:
        level: noise level; 0 for the finished images.
        reward: name of the reward that was named.
        judge: name of what judged: an adapter for the level, or the reward itself.
        scores: (P, S) float64.
    """

    level: float
    reward: str
    judge: str
    scores: Floats


def judges_of(name: str, reward: Reward, level: float) -> dict[str, Reward]:
    """Who judges a level: the reward as it stands, and its judge for the level where that is another one.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> grey = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "grey")
        >>> list(judges_of("grey", grey, 0.5))
        ['grey']
    """
    at_noise = reward.at_noise(level)
    plain = ", ".join(reward.judges)
    banded = ", ".join(at_noise.judges)
    # a reward may answer with another object that has the same name: then there is nothing to compare
    return {plain: reward} if banded == plain else {plain: reward, banded: at_noise}


@torch.no_grad()
def scored_predictions(
    records: PredictionRecords, rewards: Mapping[str, Reward], *, found: list[LevelScores]
) -> Iterator[Progress]:
    """Score all predictions and finished images of a recording.

    Args:
        records: what is scored.
        rewards: name -> reward.
        found: gets the scores of each reward, judge and level.

    Yields:
        After each prompt of each: the progress.
    """
    for name, reward in rewards.items():
        for level in (*records.levels, FINISHED):
            for judge, asked in judges_of(name, reward, level).items():
                rows = []
                for place, prompt in enumerate(records.prompts):
                    images = [records.source(place, seed, level).load() for seed in range(records.num_seeds)]
                    rows.append(asked(torch.stack(images), prompt).double().cpu().numpy())
                    yield Progress(f"{judge} at {level:.3f}", place + 1, len(records.prompts))
                found.append(LevelScores(level, name, judge, np.stack(rows)))


def pairs_in_order(scores: Floats, finished: Floats) -> tuple[Floats, Floats]:
    """Of each prompt: pairs of images that scores put in the order of the finished ones, and pairs that differ there.

    Args:
        scores: (P, S); a tie counts as half a pair in order.
        finished: (P, S).

    Returns:
        (P,) and (P,).

    Example:
        >>> pairs_in_order(np.array([[0.0, 2.0, 1.0]]), np.array([[0.0, 1.0, 1.0]]))
        (array([2.]), array([2.]))
    """
    first, second = np.triu_indices(scores.shape[1], k=1)
    predicted = np.sign(scores[:, first] - scores[:, second])
    wanted = np.sign(finished[:, first] - finished[:, second])
    right = np.where(predicted == 0, 0.5, predicted == wanted) * (wanted != 0)
    return right.sum(axis=1).astype(np.float64), (wanted != 0).sum(axis=1).astype(np.float64)


def accuracy_row(scores: Floats, finished: Floats, prompts: Sequence[str]) -> dict[str, Any]:
    """Pair accuracy and rank correlation within a prompt, with 95 % intervals clustered by the text of the prompt.

    Args:
        scores: (P, S), of predictions.
        finished: (P, S), of what became of them. Prompts whose finished scores are all alike play no part.
        prompts: P texts.

    Returns:
        `pairs` and `rank`, each with `_low` and `_high`, and `num_pairs`; None where no pair differs.
    """
    right, count = pairs_in_order(scores, finished)
    kept = count > 0
    empty = dict.fromkeys(("pairs", "pairs_low", "pairs_high", "rank", "rank_low", "rank_high"))
    row: dict[str, Any] = {**empty, "num_pairs": int(count.sum())}
    if not kept.any():
        return row
    texts = [prompt for prompt, keeps in zip(prompts, kept, strict=True) if keeps]
    share = clustered_ratio(right[kept].tolist(), count[kept].tolist(), texts)
    if share is not None:
        row |= {"pairs": share.estimate, "pairs_low": share.low, "pairs_high": share.high}
    ranks = rank_correlations(np.stack([scores[kept], finished[kept]], axis=2).astype(np.float64))[:, 0]
    rank = clustered_bootstrap(ranks.tolist(), texts)
    return row | {"rank": rank.estimate, "rank_low": rank.low, "rank_high": rank.high}


def accuracy_rows(
    records: PredictionRecords, scored: Sequence[LevelScores], references: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The table: each level, judge and reference.

    Args:
        records: whose finished scores are the references.
        scored: of `scored_predictions`.
        references: names of recorded rewards; all of them if none are named.

    Raises:
        ValueError: a name that did not score the finished images.
    """
    tables = {name: records.of(name) for name in references or records.scores}
    return [
        {"level": one.level, "reward": one.reward, "judge": one.judge, "reference": name}
        | accuracy_row(one.scores, finished, records.prompts)
        for name, finished in tables.items()
        for one in sorted(scored, key=lambda one: -one.level)
    ]


def write_accuracy(out: Path, records: PredictionRecords, rows: list[dict[str, Any]]) -> Report:
    """Write `noise_accuracy.json` and `noise_accuracy.md` into a folder."""
    title = f"Predictions in {records.folder}: {len(records.prompts)} prompts x {records.num_seeds} seeds"
    table = Table(title, COLUMNS, rows)
    files = (
        write_json(out / "noise_accuracy.json", {"folder": str(records.folder), "rows": rows}),
        write_whole(out / "noise_accuracy.md", markdown_report([table])),
    )
    return Report("What rewards know of predictions", [table], files)
