"""Pair accuracy of rewards on rankings by people: ties of both stated, intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from fk_reward.benchmarks.statistics import clustered_bootstrap

Result = Mapping[str, Any]
"""Of one ranking: `prompt`; `order`, what people say; and `scores` of the images, or, of rewards that compare,
`margins`: lists of i, j and how much image i is preferred to image j, for all i < j."""


class Pair(NamedTuple):
    """Two images of one prompt.

    Attributes:
        human: 1 or -1 for the one that people prefer, 0 for a tie.
        margin: by how much the reward prefers the first one; 0 for a tie.
        prompt: the prompt.
    """

    human: int
    margin: float
    prompt: str


def pairs_of(result: Result) -> list[Pair]:
    """All pairs of a ranking, tied ones too.

    Example:
        >>> pairs_of({"prompt": "a", "order": [2, 1, 1], "scores": [0.5, 0.25, 0.25]})
        [Pair(human=1, margin=0.25, prompt='a'), Pair(human=1, margin=0.25, prompt='a'), Pair(human=0, margin=0.0, \
prompt='a')]
    """
    order = result["order"]
    if result.get("margins") is not None:
        found = [(int(i), int(j), float(margin)) for i, j, margin in result["margins"]]
    else:
        # equal scores first: -inf less -inf would be NaN
        scores = result["scores"]
        places = combinations(range(len(order)), 2)
        found = [(i, j, 0.0 if scores[i] == scores[j] else scores[i] - scores[j]) for i, j in places]
    return [Pair(int(np.sign(order[i] - order[j])), margin, result["prompt"]) for i, j, margin in found]


def summarize_rankings(results: Sequence[Result], benchmark: str) -> dict[str, Any]:
    """Figures of one reward on one benchmark.

    Args:
        results: of at least one ranking.
        benchmark: its name, for its own rule (`OWN_RULES`).

    Returns:
        `num_prompts`, distinct ones; `num` pairs that people decide; `human_ties`, the number of those that they do
        not; of the decided ones `accuracy`, the share in which the reward prefers the same image (its ties are wrong),
        with its 95 % interval over prompts, `low` and `high`; `ties`, the share that it ties; `accuracy_without_ties`;
        `calibrated`, see `calibrated_accuracy`, and its `tie_threshold`, where people tie; and `own`, the figure by the
        benchmark's own rule, where that is another one.

    Raises:
        ValueError: people tie all pairs.

    Example:
        >>> row = summarize_rankings([{"prompt": "a", "order": [2, 1], "scores": [0.5, 0.25]}], "hpdv3")
        >>> row["accuracy"], row["ties"], row["own"]
        (1.0, 0.0, None)
    """
    pairs = [pair for result in results for pair in pairs_of(result)]
    decided = [pair for pair in pairs if pair.human]
    if not decided:
        raise ValueError("People tie all pairs: there is nothing to be right about.")
    right = [pair.margin * pair.human > 0 for pair in decided]
    ties = [pair.margin == 0 for pair in decided]
    interval = clustered_bootstrap([float(value) for value in right], [pair.prompt for pair in decided])
    certain = len(decided) - sum(ties)
    accuracy, threshold = calibrated_accuracy(pairs) if len(pairs) > len(decided) else (None, None)
    own = OWN_RULES.get(benchmark)
    return {
        "num_prompts": len({pair.prompt for pair in pairs}),
        "num": len(decided),
        "human_ties": len(pairs) - len(decided),
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "ties": sum(ties) / len(ties),
        "accuracy_without_ties": sum(right) / certain if certain else None,
        "calibrated": accuracy,
        "tie_threshold": threshold,
        "own": None if own is None else own(results),
    }


def calibrated_accuracy(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Accuracy over all pairs where ties of people count: a reward that ties them, too, is right.

    Scores of a reward hardly ever tie by themselves, so margins up to a threshold count as ties, and the threshold is
    the one that gives the highest accuracy (Deutsch, Foster and Freitag 2023, arXiv 2305.14324: tie calibration, on
    pairs of one prompt).

    Args:
        pairs: at least one.

    Returns:
        The accuracy, and the smallest threshold that gives it.

    Example:
        >>> calibrated_accuracy([Pair(1, 0.5, "a"), Pair(0, 0.1, "a"), Pair(-1, 0.2, "b")])
        (0.6666666666666666, 0.1)
    """
    sizes = np.abs(np.array([pair.margin for pair in pairs]))
    human = np.array([pair.human for pair in pairs])
    right = np.sign([pair.margin for pair in pairs]) * human > 0
    order = np.argsort(sizes, kind="stable")
    # Below the threshold ties of people are right, above it what is decided the same way.
    below = np.concatenate([[0], np.cumsum(human[order] == 0)])
    above = right.sum() - np.concatenate([[0], np.cumsum(right[order])])
    thresholds = np.concatenate([[-np.inf], sizes[order]])
    # Only ends of runs of equal margins are thresholds; margins of 0 are ties in any case.
    ends = np.append(thresholds[1:] != thresholds[:-1], True) & (thresholds >= 0)
    counts = np.where(ends, below + above, -1)
    if not (sizes == 0).any():  # a threshold of 0 ties nothing
        counts, thresholds = np.append(right.sum(), counts), np.append(0.0, thresholds)
    best = int(np.argmax(counts))
    return float(counts[best] / len(pairs)), float(thresholds[best])


def inversion_accuracy(results: Sequence[Result]) -> float:
    """HPSv2's rule for HPDv2: 1 less the share of a prompt's pairs in opposite order, averaged over prompts.

    Pairs that people or the reward tie are never in opposite order (`inversion_score` in its `train.py`).
    """
    shares = []
    for result in results:
        pairs = pairs_of(result)
        shares.append(1 - sum(pair.margin * pair.human < 0 for pair in pairs) / len(pairs))
    return float(np.mean(shares))


def half_for_ties(results: Sequence[Result]) -> float:
    """Pick-a-Pic's rule: half a point where just one of people and reward ties, one where both do.

    As `eval_preference_predictor.py`, with a tie threshold of 0; there it is chosen on the validation split.
    """
    pairs = [pair for result in results for pair in pairs_of(result)]
    points = [
        1.0 if np.sign(pair.margin) == pair.human else 0.5 if 0 in (pair.margin, pair.human) else 0.0 for pair in pairs
    ]
    return float(np.mean(points))


OWN_RULES: dict[str, Callable[[Sequence[Result]], float]] = {"hpdv2": inversion_accuracy, "pickapic": half_for_ties}
"""Rules of benchmarks that differ from the accuracy here: it is ImageReward's, HPDv3's and MMRB2's."""
