"""Scoring what is still missing: stopped at any time, resumed, shared between processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fk_reward.benchmarks.mjbench.questions import Question
from fk_reward.benchmarks.mjbench.scoring import score_questions
from fk_reward.benchmarks.result_store import ResultStore
from fk_reward.rewards import Reward

RESULT_KEY = ("index",)
"""The field that says what a result is of."""


def run_missing(
    reward: Reward,
    questions: Sequence[Question],
    store: ResultStore,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 16,
) -> Iterator[tuple[int, int]]:
    """Score what the store does not have and write it down after each batch.

    Args:
        reward: the reward.
        questions: all of them, whoever scores them.
        store: results so far, of all processes.
        shard: index and number of the processes that share the work; this one takes every n-th question.
        batch_size: questions a call of the reward.

    Yields:
        After each batch: how many questions of this process are done, and how many it had to do.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fk_reward.benchmarks.mjbench.shapes_suite import shapes_questions
        >>> from fk_reward.rewards import load_reward
        >>> reward = load_reward(lambda images, captions: images.mean(dim=(1, 2, 3)))
        >>> with TemporaryDirectory() as folder:
        ...     for _ in range(2):  # the second run finds nothing to do
        ...         list(run_missing(reward, shapes_questions("bias", 5), ResultStore(folder, {}), batch_size=3))
        [(3, 5), (5, 5)]
        []
    """
    done = {result["index"] for result in store.load(RESULT_KEY)}
    todo = [index for index in range(shard[0], len(questions), shard[1]) if index not in done]
    for start in range(0, len(todo), batch_size):
        indices = todo[start : start + batch_size]
        batch = [questions[index] for index in indices]
        scores = score_questions(reward, batch)
        results = [_result(*row) for row in zip(indices, batch, scores, strict=True)]
        store.append(results, writer=f"{shard[0]}-of-{shard[1]}")
        yield start + len(indices), len(todo)


def load_results(store: ResultStore) -> list[dict[str, Any]]:
    """All results in the order of the questions, each once.

    Raises:
        ValueError: when there are none yet.
    """
    results = store.load(RESULT_KEY)
    if not results:
        raise ValueError(f"{store.folder} holds no results yet.")
    return sorted(results, key=lambda result: result["index"])


def _result(index: int, question: Question, scores: list[float]) -> dict[str, Any]:
    known = {"caption": question.caption, "subset": question.subset, "label": question.label}
    return {"index": index, **known, "scores": scores}
