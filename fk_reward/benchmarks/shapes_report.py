"""Tables of the shapes benchmark: accuracy by task with intervals, paired differences, diversity, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fk_reward.benchmarks.reports import Column, markdown_table
from fk_reward.benchmarks.shapes_runs import BEST, STEERED, UNSTEERED
from fk_reward.benchmarks.uncertainty import clustered_bootstrap
from fk_reward.shapes import TASKS

Record = Mapping[str, Any]
Method = tuple[str, int]
Results = dict[tuple[int, int], Record]
"""Results of one method, by prompt index and seed."""

ACCURACY_COLUMNS = (
    Column("method"),
    Column("num_particles", "K", "{:d}"),
    Column("overall", "overall [95 %]"),
    *(Column(task, task.replace("_", " ")) for task in TASKS),
    Column("reward", style="{:.3f}"),
)
DIFFERENCE_COLUMNS = (
    Column("comparison"),
    Column("overall", "overall [95 %]"),
    *(Column(task, task.replace("_", " ")) for task in TASKS),
)
POPULATION_COLUMNS = (
    Column("method"),
    Column("num_particles", "K", "{:d}"),
    Column("share_correct", "correct among all K", "{:.3f}"),
    Column("distance", "pixel distance", "{:.3f}"),
    Column("reward_spread", "reward spread", "{:.3f}"),
    Column("num_ancestors", "ancestors left", "{:.2f}"),
    Column("model_rows", "denoiser rows", "{:.0f}"),
    Column("decoded", "decodes", "{:.0f}"),
    Column("seconds", "seconds", "{:.2f}"),
)


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Rows of the tables, as JSON.

    Args:
        records: of `run_population`.

    Returns:
        `methods`: one row for each method and K; `differences`: paired differences of accuracy.

    Raises:
        ValueError: without results.
    """
    by_method = _by_method(records)
    if not by_method:
        raise ValueError("There are no results to report.")
    return {
        "methods": [_method_row(method, results) for method, results in by_method.items()],
        "differences": [
            _difference_row(names, by_method[names[0]], by_method[names[1]]) for names in _comparisons(by_method)
        ],
    }


def accuracy_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `methods` with the intervals as text."""
    return [_with_texts(row, overall="{:.3f} [{:.3f}, {:.3f}]", task="{:.2f} ± {:.2f}") for row in summary["methods"]]


def difference_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `differences` with the intervals as text."""
    styles = {"overall": "{:+.3f} [{:+.3f}, {:+.3f}]", "task": "{:+.2f} ± {:.2f}"}
    return [_with_texts(row, **styles) for row in summary["differences"]]


def _with_texts(row: Mapping[str, Any], *, overall: str, task: str) -> dict[str, Any]:
    """The row with its intervals as text: both ends overall, half the width for each task."""
    texts = {"overall": overall.format(*row["overall"].values())}
    for name in TASKS:
        if name in row:
            texts[name] = task.format(row[name]["estimate"], (row[name]["high"] - row[name]["low"]) / 2)
    return {**row, **texts}


def markdown_report(summary: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    tables = (
        ("Accuracy", ACCURACY_COLUMNS, accuracy_rows(summary)),
        ("Paired differences of accuracy", DIFFERENCE_COLUMNS, difference_rows(summary)),
        ("Populations and cost, per prompt", POPULATION_COLUMNS, summary["methods"]),
    )
    return "\n\n".join(f"### {title}\n\n{markdown_table(columns, rows)}" for title, columns, rows in tables) + "\n"


def _by_method(records: Sequence[Record]) -> dict[Method, Results]:
    """Results by method and K: unsteered first, then best and steered of each K."""
    methods: dict[Method, Results] = {}
    for record in records:
        results = methods.setdefault((record["method"], record["num_particles"]), {})
        results[record["prompt_index"], record["seed"]] = record
    ranks = {UNSTEERED: 0, BEST: 1, STEERED: 2}
    return dict(sorted(methods.items(), key=lambda item: (item[0][1], ranks[item[0][0]])))


def _comparisons(by_method: Mapping[Method, Results]) -> list[tuple[Method, Method]]:
    """Steered against best of K at equal cost first, then each against one picture."""
    sizes = sorted({size for _, size in by_method})
    pairs = [((STEERED, size), (BEST, size)) for size in sizes]
    pairs += [((method, size), (UNSTEERED, 1)) for method in (STEERED, BEST) for size in sizes]
    return [pair for pair in pairs if pair[0] in by_method and pair[1] in by_method]


def _method_row(method: Method, results: Results) -> dict[str, Any]:
    records = list(results.values())
    row: dict[str, Any] = {"method": method[0], "num_particles": method[1], "num_results": len(records)}
    row |= _intervals(records, lambda record: float(record["correct"]))
    for name in (
        "reward",
        "share_correct",
        "distance",
        "reward_spread",
        "num_ancestors",
        "model_rows",
        "decoded",
        "seconds",
    ):
        values = [record[name] for record in records]
        row[name] = None if None in values else float(np.mean(values))
    return row


def _difference_row(names: tuple[Method, Method], first: Results, second: Results) -> dict[str, Any]:
    """Over the prompts and seeds that both methods have."""
    keys = [key for key in first if key in second]
    pairs = {id(first[key]): float(first[key]["correct"]) - float(second[key]["correct"]) for key in keys}
    row = {"comparison": " - ".join(_label(*name) for name in names), "num_results": len(keys)}
    return row | _intervals([first[key] for key in keys], lambda record: pairs[id(record)])


def _intervals(records: Sequence[Record], value: Callable[[Record], float]) -> dict[str, dict[str, float]]:
    """Interval for each task and overall (the mean of the tasks), clustered by distinct prompt."""
    intervals = {}
    for name, chosen in [("overall", records), *((t, [r for r in records if r["task"] == t]) for t in TASKS)]:
        if chosen:
            prompts, tasks = [r["prompt"] for r in chosen], [r["task"] for r in chosen]
            intervals[name] = vars(clustered_bootstrap([value(r) for r in chosen], prompts, strata=tasks))
    return intervals


def _label(method: str, num_particles: int) -> str:
    return method if method == UNSTEERED else f"{method} of {num_particles}"
