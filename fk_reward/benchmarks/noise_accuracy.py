"""What a reward knows of predictions, by noise level: accuracy on pairs and rank correlation within a prompt.

Recorded predictions (`prediction_recording`) are scored by each reward as it stands and by its judge of the level; what
they are held against is the score of the finished image, by whoever gave it: the plain reward, another, a verifier.

Letters of shapes: P prompts, S seeds of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Report, Table, markdown_report, write_json
from fk_reward.benchmarks.runner import Progress
from fk_reward.benchmarks.statistics import Interval, clustered_bootstrap, clustered_ratio
from fk_reward.durable_files import write_whole
from fk_reward.rewards import Reward
from fk_reward.search.replay.records import Floats, rank_correlations
from fk_reward.training.predictions import FINISHED, PredictionRecords

GAINS = (
    Column("pairs_gain", "pairs, difference [95 %]", CHANGE, ("pairs_gain_low", "pairs_gain_high")),
    Column("rank_gain", "rank, difference [95 %]", CHANGE, ("rank_gain_low", "rank_gain_high")),
)
"""Of two judges of the same images; in the table of rewards that of a judge of the level less the plain one."""
COLUMNS = (
    Column("level", "noise level", "{:.3f}"),
    Column("judge", "judge"),
    Column("reference", "finished by"),
    Column("pairs", "pairs in order [95 %]", RANGE, ("pairs_low", "pairs_high")),
    Column("rank", "rank correlation [95 %]", RANGE, ("rank_low", "rank_high")),
    *GAINS,
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
    records: PredictionRecords,
    rewards: Mapping[str, Reward],
    *,
    found: list[LevelScores],
    judges: Callable[[str, Reward, float], Mapping[str, Reward]] = judges_of,
) -> Iterator[Progress]:
    """Score all predictions and finished images of a recording.

    Args:
        records: what is scored.
        rewards: name -> reward.
        found: gets the scores of each reward, judge and level.
        judges: name, reward and level -> who judges.

    Yields:
        After each prompt of each: the progress.
    """
    for name, reward in rewards.items():
        for level in (*records.levels, FINISHED):
            for judge, asked in judges(name, reward, level).items():
                rows = []
                for place, prompt in enumerate(records.prompts):
                    images = records.images(place, level)
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


@dataclass(frozen=True, eq=False)
class PromptAccuracy:
    """Figures of each prompt whose finished images differ, N of the P, as means over runs of a judge.

    Attributes:
        texts: of the prompts.
        right: (N,), pairs in order.
        count: (N,), pairs.
        ranks: (N,), rank correlations.
        runs: share of pairs in order of each run, of a judge that was trained from several seeds.
    """

    texts: tuple[str, ...]
    right: Floats
    count: Floats
    ranks: Floats
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[Floats], finished: Floats, prompts: Sequence[str]) -> PromptAccuracy:
        """From the scores of one or more runs.

        Args:
            runs: (P, S) each, of the same predictions.
            finished: (P, S), of what became of them.
            prompts: P texts.
        """
        pairs = [pairs_in_order(scores, finished) for scores in runs]
        count = pairs[0][1]
        kept = count > 0
        right = np.mean([found[kept] for found, _ in pairs], axis=0)
        ranks = np.mean([_ranks(scores[kept], finished[kept]) for scores in runs], axis=0)
        texts = tuple(prompt for prompt, keeps in zip(prompts, kept, strict=True) if keeps)
        shares = tuple(float(found[kept].sum() / count[kept].sum()) for found, _ in pairs) if texts else ()
        return cls(texts, right, count[kept], ranks, shares)

    def row(self) -> dict[str, Any]:
        """`pairs` and `rank`, each with `_low` and `_high`, and `num_pairs`; None where no pair differs."""
        return {**self._row("pairs", self.right), **self._row("rank", self.ranks), "num_pairs": int(self.count.sum())}

    def gains(self, other: PromptAccuracy) -> dict[str, Any]:
        """`pairs_gain` and `rank_gain` with their intervals: this judge less another one of the same images."""
        return {
            **self._row("pairs_gain", self.right - other.right),
            **self._row("rank_gain", self.ranks - other.ranks),
        }

    def _row(self, name: str, values: Floats) -> dict[str, Any]:
        """An estimate and its ends: a share of pairs, or a mean of the prompts."""
        found: Interval | None = None
        if self.texts and name.startswith("pairs"):
            found = clustered_ratio(values.tolist(), self.count.tolist(), self.texts)
        elif self.texts:
            found = clustered_bootstrap(values.tolist(), self.texts)
        ends = (None, None, None) if found is None else (found.estimate, found.low, found.high)
        return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _ranks(scores: Floats, finished: Floats) -> Floats:
    return rank_correlations(np.stack([scores, finished], axis=2).astype(np.float64))[:, 0]


def accuracy_row(scores: Floats, finished: Floats, prompts: Sequence[str]) -> dict[str, Any]:
    """Pair accuracy and rank correlation within a prompt, with 95 % intervals clustered by the text of the prompt.

    Args:
        scores: (P, S), of predictions.
        finished: (P, S), of what became of them. Prompts whose finished scores are all alike play no part.
        prompts: P texts.

    Returns:
        `pairs` and `rank`, each with `_low` and `_high`, and `num_pairs`; None where no pair differs.
    """
    return PromptAccuracy.of([scores], finished, prompts).row()


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
        _row(one, plain_of(one, scored), name, finished, records.prompts)
        for name, finished in tables.items()
        for one in sorted(scored, key=lambda one: -one.level)
    ]


def plain_of(judge: LevelScores, scored: Sequence[LevelScores]) -> LevelScores | None:
    """What judges finished images of the same reward, at the same level; None where that is the judge itself."""
    finished = {one.judge for one in scored if one.reward == judge.reward and one.level == FINISHED}
    if judge.judge in finished:
        return None
    return next((one for one in scored if one.level == judge.level and one.reward == judge.reward
                 and one.judge in finished), None)  # fmt: skip


def _row(
    one: LevelScores, plain: LevelScores | None, reference: str, finished: Floats, prompts: Sequence[str]
) -> dict[str, Any]:
    found = PromptAccuracy.of([one.scores], finished, prompts)
    row = {"level": one.level, "reward": one.reward, "judge": one.judge, "reference": reference} | found.row()
    return row if plain is None else row | found.gains(PromptAccuracy.of([plain.scores], finished, prompts))


def write_accuracy(
    out: Path, records: PredictionRecords, rows: list[dict[str, Any]], *, more: Sequence[Table] = ()
) -> Report:
    """Write `noise_accuracy.json` and `noise_accuracy.md` into a folder.

    Args:
        out: the folder.
        records: what was scored.
        rows: of `accuracy_rows`.
        more: further tables.
    """
    title = f"Predictions in {records.folder}: {len(records.prompts)} prompts x {records.num_seeds} seeds"
    tables = [Table(title, COLUMNS, rows), *more]
    content = {"folder": str(records.folder), "rows": rows, "more": {table.title: table.rows for table in more}}
    files = (
        write_json(out / "noise_accuracy.json", content),
        write_whole(out / "noise_accuracy.md", markdown_report(tables)),
    )
    return Report("What rewards know of predictions", tables, files)
