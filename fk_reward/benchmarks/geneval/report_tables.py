"""Tables of a GenEval report, for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fk_reward.benchmarks.geneval.summary import OVERALL, Ends
from fk_reward.benchmarks.reports import CHANGE, RANGE, Column, Table

RUN_COLUMNS = (Column("method"), Column("reward"), Column("num_particles", "K", "{:d}"))
COUNT_COLUMNS = (
    Column("correct_prompts", "prompts with a correct picture", "{:.3f}"),
    Column("num_prompts", "prompts", "{:d}"),
    Column("num_pictures", "pictures", "{:d}"),
)
COST_COLUMNS = (
    Column("model_calls", "denoiser calls", "{:.1f}"),
    Column("model_rows", "denoiser rows", "{:.1f}"),
    Column("decodes", style="{:.1f}"),
    Column("reward_calls", "pictures scored", "{:.1f}"),
    Column("seconds", style="{:.2f}"),
)


def report_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of `summarize`'s rows that have something in them, the intervals as text.

    Args:
        rows: of `summarize`.
    """
    tasks = list(dict.fromkeys(task for row in rows for task in row["accuracy"] if task != OVERALL))
    accuracy = (Column(OVERALL, "overall [95 %]"), *(Column(task, task.replace("_", " ")) for task in tasks))
    rewards = tuple(Column(name, f"{name} [95 %]") for name in dict.fromkeys(n for row in rows for n in row["scores"]))
    gains = [_gain_cells(row) for row in rows if row["difference"] is not None]
    scored = [row for row in rows if any(row["score_differences"].values())]
    tables = [
        Table("Accuracy", RUN_COLUMNS + accuracy + COUNT_COLUMNS, [_accuracy_cells(row) for row in rows]),
        Table("Paired differences of accuracy to unsteered", RUN_COLUMNS + accuracy, gains),
        Table("Mean rewards", RUN_COLUMNS + rewards, [_cells(row, row["scores"], RANGE) for row in rows if rewards]),
        Table(
            "Paired differences of rewards to unsteered",
            RUN_COLUMNS + rewards,
            [_cells(row, row["score_differences"], CHANGE) for row in scored],
        ),
        Table("Cost of a picture", RUN_COLUMNS + COST_COLUMNS, [{**row, **row["cost"]} for row in rows if row["cost"]]),
    ]
    return [table for table in tables if table.rows]


def _accuracy_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**_cells(row, row["accuracy"], "{:.2f} ± {:.2f}"), OVERALL: _text(row["accuracy"][OVERALL], RANGE)}


def _gain_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**_cells(row, row["difference"], "{:+.2f} ± {:.2f}"), OVERALL: _text(row["difference"][OVERALL], CHANGE)}


def _cells(row: Mapping[str, Any], intervals: Mapping[str, Ends | None], style: str) -> dict[str, Any]:
    """The row with intervals as text."""
    return {**row, **{name: _text(ends, style) for name, ends in intervals.items() if ends is not None}}


def _text(ends: Ends, style: str) -> str:
    """An estimate and both ends, or half the width where the style has a ±; by itself where the ends are not known."""
    estimate, low, high = ends.values()
    if low is None or high is None:
        return style.split()[0].format(estimate)
    return style.format(estimate, (high - low) / 2) if "±" in style else style.format(estimate, low, high)
