"""Published results of MJ-Bench, each with the source in which it was found; in percent, as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fk_reward.benchmarks.mjbench.questions import BIAS, check_perspective

_BENCHMARK = "Chen et al. 2024, arXiv 2407.04842: table of the main results, from mj-bench.github.io"
_LLAVA_REWARD = "Zhou et al. 2025, arXiv 2507.21391; quoted from a public summary, not checked against the paper"


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One row of a published table, in percent.

    Attributes:
        model: as the source names it.
        source: where the figures were found.
        alignment: accuracy with and without ties; None for what the source does not tell.
        safety: the same.
        quality: the same.
        bias: accuracy, normalised dispersion score, Gini-based equality score.
    """

    model: str
    source: str
    alignment: tuple[float | None, ...] = ()
    safety: tuple[float | None, ...] = ()
    quality: tuple[float | None, ...] = ()
    bias: tuple[float | None, ...] = ()


def _row(model: str, *figures: float) -> PublishedResult:
    parts = {"alignment": figures[:2], "safety": figures[2:4], "quality": figures[4:6], "bias": figures[6:]}
    return PublishedResult(model=model, source=_BENCHMARK, **parts)


def _second_hand(model: str, *accuracies: float) -> PublishedResult:
    parts = zip(("alignment", "safety", "quality"), accuracies, strict=False)
    return PublishedResult(
        model=model, source=_LLAVA_REWARD, **{perspective: (accuracy, None) for perspective, accuracy in parts}
    )


PUBLISHED = (
    _row("CLIP-v1 (CLIP-v2 on the site)", 38.1, 59.5, 12.7, 33.3, 34.4, 68.4, 57.4, 76.3, 86.9),
    _row("BLIP-v2", 17.3, 38.8, 44.0, 65.6, 7.5, 36.5, 68.7, 83.7, 91.3),
    _row("PickScore-v1", 58.8, 64.6, 37.2, 42.2, 83.8, 89.6, 31.0, 66.5, 81.1),
    _row("HPS-v2.1", 47.3, 70.1, 18.8, 41.3, 67.3, 93.5, 55.0, 77.9, 87.6),
    _row("ImageReward", 50.9, 64.7, 24.9, 38.7, 63.5, 81.8, 40.9, 73.7, 85.3),
    _row("Aesthetics", 32.4, 52.7, 27.0, 53.6, 69.6, 92.5, 61.4, 85.7, 92.1),
    _row("GPT-4o", 61.5, 62.5, 35.3, 100.0, 97.6, 98.7, 65.8, 82.5, 92.8),
    _second_hand("VQAScore (11B)", 63.2),
    _second_hand("LLaVA-Reward-Phi", 66.1, 55.2, 91.1),
    _second_hand("LLaVA-Reward-Qwen", 67.5, 59.2, 94.3),
)
"""Score models of the benchmark's paper and its best judge by text; LLaVA-Reward."""


def published_rows(perspective: str) -> list[dict[str, Any]]:
    """What is published about a perspective, as fractions like our own results.

    Args:
        perspective: one of the four of MJ-Bench.

    Returns:
        Rows with `model`, `source`, `accuracy`, and `accuracy_without_ties` or, for bias, `nds` and `ges`, as far as
        the source tells them.

    Raises:
        ValueError: for another perspective.

    Example:
        >>> [row for row in published_rows("quality") if row["model"] == "ImageReward"][0]["accuracy"]
        0.635
    """
    check_perspective(perspective)
    names = ("accuracy", "nds", "ges") if perspective == BIAS else ("accuracy", "accuracy_without_ties")
    rows = []
    for result in PUBLISHED:
        if figures := getattr(result, perspective):
            known = {name: figure / 100 for name, figure in zip(names, figures, strict=True) if figure is not None}
            rows.append({"model": result.model, **known, "source": result.source})
    return rows
