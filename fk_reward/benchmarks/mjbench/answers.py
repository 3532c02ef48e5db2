"""How a reward answers questions of MJ-Bench, and what is still to be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fk_reward.benchmarks.mjbench.questions import Question
from fk_reward.benchmarks.preferences import compares, has_comparing_part
from fk_reward.benchmarks.store import ResultStore
from fk_reward.rewards import Reward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge


@torch.no_grad()
def score_questions(reward: Reward, questions: Sequence[Question]) -> list[list[float]]:
    """Let a reward judge some questions in one call.

    The reward is given captions and pictures, nothing else. One that compares pictures (`compares`) is asked for the
    probability p that the first picture is preferred, and the scores are p and 1 - p. A composition that has such a
    part is asked for each question by itself, as the score of a picture would change with the other questions.

    Args:
        reward: the reward.
        questions: of one perspective.

    Returns:
        For each question the scores of its pictures; higher is better, also where the reward's card says otherwise.

    Raises:
        ValueError: for a picture that cannot be read, and for single pictures under a reward that compares.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.benchmarks.mjbench.questions import parse_question
        >>> from fk_reward.rewards import load_reward
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> row = {"caption": "red", "image0": blue, "image1": red, "label": 1}
        >>> redness = load_reward(lambda images, captions: images[:, 0].mean(dim=(1, 2)))
        >>> score_questions(redness, [parse_question(row, "alignment", origin="1")])
        [[0.0, 1.0]]
    """
    pictures = [question.load() for question in questions]
    captions = [question.caption for question in questions]
    if compares(reward):
        return _probabilities(reward, pictures, captions)
    if has_comparing_part(reward):
        rows = zip(pictures, captions, strict=True)
        return [_scores(reward, [images], [caption])[0] for images, caption in rows]
    return _scores(reward, pictures, captions)


def _scores(reward: Reward, pictures: list[list[Tensor]], captions: list[str]) -> list[list[float]]:
    sizes = [len(images) for images in pictures]
    texts = [caption for caption, size in zip(captions, sizes, strict=True) for _ in range(size)]
    scores = reward([image for images in pictures for image in images], texts)
    sign = 1.0 if reward.card.higher_is_better else -1.0
    return [(sign * part).tolist() for part in scores.cpu().split(sizes)]


def _probabilities(
    reward: LlavaReward | PreferenceJudge, pictures: list[list[Tensor]], captions: list[str]
) -> list[list[float]]:
    if any(len(images) != 2 for images in pictures):
        raise ValueError(f"{reward.card.name} compares pictures; it has no score of one by itself, as bias needs it.")
    first, second = ([images[place] for images in pictures] for place in (0, 1))
    chances = reward.preference(first, second, captions).double().tolist()
    return [[chance, 1 - chance] for chance in chances]


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
        >>> from fk_reward.benchmarks.mjbench.shapes import shapes_questions
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
