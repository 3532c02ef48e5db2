"""How often a reward prefers the picture that people prefer: with and without ties, by subset, by tie threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fk_reward.benchmarks.preference_answers import Answers, summarize_answers
from fk_reward.benchmarks.uncertainty import clustered_bootstrap
from fk_reward.training.metrics import answer_metrics

OVERALL = "overall"
"""Subset of the row for all pairs together, in which each pair counts once."""

TIE_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of ties that the default sweep of thresholds aims at."""

Result = Mapping[str, Any]
"""Of one pair: `caption`, `subset`, `label`, the place of the preferred picture, and `scores` of both pictures."""


def pair_answers(results: Sequence[Result], *, tie_threshold: float = 0.0) -> Answers:
    """How much the preferred pictures win by, with 0 for ties.

    Two scores tie when they differ by no more than the threshold, as in MJ-Bench's public code (`utils/rm_utils.py`).

    Args:
        results: of N pairs.
        tie_threshold: in the unit of the scores, at least 0. Preference probabilities p and 1 - p differ by |2p - 1|.

    Raises:
        ValueError: for a threshold below 0 or not finite.

    Example:
        >>> results = [{"caption": "a star", "label": label, "scores": [0.5, 0.25]} for label in (0, 1)]
        >>> pair_answers(results).right
        tensor([ True, False])
        >>> pair_answers(results, tie_threshold=0.25).logits
        tensor([0., 0.], dtype=torch.float64)

    N: number of pairs.
    """
    check_threshold(tie_threshold)
    margins = _margins(results)
    return Answers(
        logits=margins.where(margins.abs() > tie_threshold, 0.0),
        truths=torch.ones(len(margins), dtype=torch.bool),
        prompts=tuple(result["caption"] for result in results),
        is_labelled=False,
    )


def check_threshold(tie_threshold: float) -> None:
    """Refuse a tie threshold below 0 or not finite.

    Raises:
        ValueError: for such a one.

    Example:
        >>> check_threshold(-0.1)
        Traceback (most recent call last):
        ValueError: A tie threshold should be at least 0 and finite, got -0.1.
    """
    if not (math.isfinite(tie_threshold) and tie_threshold >= 0):
        raise ValueError(f"A tie threshold should be at least 0 and finite, got {tie_threshold}.")


def summarize_pairs(results: Sequence[Result], *, tie_threshold: float = 0.0) -> list[dict[str, Any]]:
    """Measures of all pairs, and of each subset where there are several.

    Args:
        results: of at least one pair.
        tie_threshold: as for `pair_answers`.

    Returns:
        A row each, with `subset` and: `num` pairs, `num_prompts` captions, `accuracy` (a tie is wrong) and its 95 %
        bootstrap interval `low`, `high` over captions, `ties`, and where some pair is decided
        `accuracy_without_ties` with `decided_low`, `decided_high`.

    Example:
        >>> scores = ([2.0, 1.0], [2.0, 2.0])
        >>> results = [{"caption": "a star", "subset": "", "label": 0, "scores": pair} for pair in scores]
        >>> (row,) = summarize_pairs(results)
        >>> row["accuracy"], row["accuracy_without_ties"], row["ties"]
        (0.5, 1.0, 0.5)
    """
    names = sorted({result["subset"] for result in results})
    parts = {name: [result for result in results if result["subset"] == name] for name in names}
    groups = {OVERALL: list(results), **(parts if len(parts) > 1 else {})}
    return [{"subset": name, **_measures(part, tie_threshold)} for name, part in groups.items()]


def sweep_ties(results: Sequence[Result], thresholds: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Accuracy of all pairs by tie threshold.

    Args:
        results: of at least one pair.
        thresholds: to try; None for 0 and the smallest ones at which at least the shares `TIE_SHARES` of the pairs tie,
            which needs no knowledge of the reward's unit.

    Returns:
        Ascending, a row each: `tie_threshold`, `ties`, `accuracy` (a tie is wrong), and where some pair is decided
        `accuracy_without_ties`.

    Example:
        >>> results = [{"caption": "a star", "label": 0, "scores": [score, 0.0]} for score in (0.5, 2.0)]
        >>> [(row["ties"], row["accuracy"]) for row in sweep_ties(results, [0.0, 1.0])]
        [(0.0, 1.0), (0.5, 0.5)]
    """
    if thresholds is None:
        sizes = _margins(results).abs().numpy()
        thresholds = [0.0, *np.quantile(sizes, TIE_SHARES, method="inverted_cdf").tolist()]
    rows = []
    for threshold in sorted(set(thresholds)):
        answers = pair_answers(results, tie_threshold=threshold)
        rows.append({"tie_threshold": threshold, **_known(answer_metrics(answers.logits, answers.truths))})
    return rows


def _margins(results: Sequence[Result]) -> Tensor:
    """Score of the preferred picture minus that of the other one, (N,) float64."""
    scores = [(result["scores"][result["label"]], result["scores"][1 - result["label"]]) for result in results]
    preferred, other = torch.tensor(scores, dtype=torch.float64).unbind(dim=1)
    return preferred - other


def _measures(results: Sequence[Result], tie_threshold: float) -> dict[str, Any]:
    answers = pair_answers(results, tie_threshold=tie_threshold)
    row = _known(summarize_answers(answers))
    decided = answers.logits != 0
    if decided.any():
        captions = [caption for caption, known in zip(answers.prompts, decided.tolist(), strict=True) if known]
        interval = clustered_bootstrap(answers.right[decided].double().tolist(), captions)
        row |= {"decided_low": interval.low, "decided_high": interval.high}
    return row


def _known(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Without calibration, which scores of any unit do not have, and without what no pair decides."""
    without = {name: value for name, value in measures.items() if name != "calibration_error"}
    return {name: value for name, value in without.items() if not (isinstance(value, float) and math.isnan(value))}
