"""What the demo says: a table, a sentence about what steering gained, and a record for a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fk_reward.terminal import TextTable, styled

if TYPE_CHECKING:
    from fk_reward.cli.demo_run import DemoResult


def demo_table(result: DemoResult) -> TextTable:
    """One row for each prompt and one for the whole: the verifier's mark and the reward of each method."""
    title = f"Held-out prompts of the shapes world, steered by {result.trace.reward_name}"
    table = TextTable(title)
    table.add_column("prompt")
    for method in result.pictures:
        table.add_column(result.label(method), right=True)
    for index, prompt in enumerate(result.prompts):
        cells = [pictures[index] for pictures in result.pictures.values()]
        marks = [styled(("✓", "green") if p.correct else ("✗", "red"), f" {p.reward:.3f}") for p in cells]
        table.add_row(prompt.text, *marks, end_section=index == len(result.prompts) - 1)
    totals = [summarise(result, method) for method in result.pictures]
    table.add_row("mean reward", *(f"{total['mean_reward']:.3f}" for total in totals))
    table.add_row("verifier: right", *(f"{total['num_correct']} of {len(result.prompts)}" for total in totals))
    seconds = [total["seconds"] for total in totals]
    table.add_row("seconds", *("-" if value is None else f"{value:.0f}" for value in seconds))
    return table


def summarise(result: DemoResult, method: str) -> dict[str, Any]:
    """Mean reward, number of right pictures and wall clock of a method."""
    pictures = result.pictures[method]
    return {
        "mean_reward": sum(p.reward for p in pictures) / len(pictures),
        "num_correct": sum(p.correct for p in pictures),
        "seconds": result.seconds[method],
    }


def headline(result: DemoResult, first: str = "best of K", second: str = "steered") -> str:
    """Say whether the second method did better than the first on these prompts, and whether chance would do as well.

    Args:
        result: the pictures.
        first: the method to beat, at the same number of model calls.
        second: the other method.
    """
    pairs = list(zip(result.pictures[first], result.pictures[second], strict=True))
    gain = sum(b.reward - a.reward for a, b in pairs) / len(pairs)
    higher = sum(b.reward > a.reward for a, b in pairs)
    wins, losses = (sum(b.correct > a.correct for a, b in pairs), sum(a.correct > b.correct for a, b in pairs))
    verdict = "helped" if wins > losses else ("hurt" if losses > wins else "made no difference")
    p_value = sign_test(wins, losses)
    chance = "Chance alone would rarely do this" if p_value < 0.05 else "Chance alone could do this"
    return (
        f"By the verifier, steering {verdict} here: of {len(pairs)} prompts, {wins} are right only with {second}, "
        f"{losses} only with {result.label(first)}. {chance} (sign test, p = {p_value:.2g}). The mean reward changed "
        f"by {gain:+.3f} (higher for {higher} of {len(pairs)})."
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test (McNemar's exact test for paired yes-no outcomes).

    Args:
        wins: pairs in which only the second is right.
        losses: pairs in which only the first is right.

    Returns:
        Probability in (0, 1] of a split at least as uneven when both are equally good.

    Example:
        >>> sign_test(3, 0), sign_test(0, 0)
        (0.25, 1.0)
    """
    total = wins + losses
    tail = sum(math.comb(total, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def to_record(result: DemoResult) -> dict[str, Any]:
    """Everything but the pixels, as plain values."""
    rows = [
        {
            "prompt": prompt.text,
            "task": prompt.task,
            "methods": {
                method: {"reward": p[index].reward, "correct": p[index].correct, "reason": p[index].reason}
                for method, p in result.pictures.items()
            },
        }
        for index, prompt in enumerate(result.prompts)
    ]
    return {
        "config": result.trace.config,
        "headline": headline(result),
        "summary": {method: summarise(result, method) for method in result.pictures},
        "rows": rows,
    }
