"""Tables of the shapes benchmark, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table
from fk_reward.shapes import TASKS

METHOD_COLUMNS = (Column("method"), Column("reward"), Column("num_particles", "K", "{:d}"))
DIFFERENCE_COLUMNS = (Column("first", "method"), Column("second", "minus"))
ACCURACY_COLUMNS = (
    Column("overall", "overall [95 %]"),
    *(Column(task, task.replace("_", " ")) for task in TASKS),
)
POPULATION_COLUMNS = (
    Column("share_correct", "correct among all K", "{:.3f}"),
    Column("distance", "pixel distance", "{:.3f}"),
    Column("reward_spread", "reward spread", "{:.3f}"),
    Column("num_ancestors", "ancestors left", "{:.2f}"),
    Column("model_rows", "denoiser rows", "{:.0f}"),
    Column("decoded", "decodes", "{:.0f}"),
    Column("seconds", "seconds", "{:.2f}"),
)
FORBIDDEN_COLUMNS = (
    Column("forbidden", "rate [95 %]"),
    Column("share_forbidden", "among all K", "{:.3f}"),
    Column("forbidden_ratio", "ratio to unsteered [95 %]"),
    Column("num_judged", "pictures", "{:d}"),
)


def report_tables(summary: Mapping[str, Any]) -> list[Table]:
    """All tables of `summarize`'s figures, the intervals as text.

    Args:
        summary: of `summarize`.
    """
    methods = [_with_texts(row, overall=RANGE, task="{:.2f} ± {:.2f}") for row in summary["methods"]]
    differences = [_with_texts(row, overall=CHANGE, task="{:+.2f} ± {:.2f}") for row in summary["differences"]]
    scores = tuple(Column(f"scores {name}", name, "{:.3f}") for name in summary["methods"][0]["scores"])
    forbidden = DIFFERENCE_COLUMNS + FORBIDDEN_COLUMNS[:1]
    return [
        Table("Accuracy", METHOD_COLUMNS + ACCURACY_COLUMNS, methods),
        Table("Paired differences of accuracy", DIFFERENCE_COLUMNS + ACCURACY_COLUMNS, differences),
        Table("Mean score of the chosen pictures by each reward", METHOD_COLUMNS + scores, methods),
        Table("Forbidden signs where the prompt asks for none", METHOD_COLUMNS + FORBIDDEN_COLUMNS, methods),
        Table("Paired differences of the rate of forbidden signs", forbidden, differences),
        Table("Populations and cost, per prompt", METHOD_COLUMNS + POPULATION_COLUMNS, methods),
    ]


def _with_texts(row: Mapping[str, Any], *, overall: str, task: str) -> dict[str, Any]:
    """The row with intervals as text: both ends of the main figures, half the width for each task; scores one a key."""
    texts: dict[str, Any] = {f"scores {name}": score for name, score in row.get("scores", {}).items()}
    for name, style in {"overall": overall, "forbidden": overall, "forbidden_ratio": "{:.2f} [{:.2f}, {:.2f}]"}.items():
        if row.get(name) is not None:
            texts[name] = style.format(*row[name].values())
    for name in TASKS:
        if name in row:
            texts[name] = task.format(row[name]["estimate"], (row[name]["high"] - row[name]["low"]) / 2)
    return {**row, **texts}
