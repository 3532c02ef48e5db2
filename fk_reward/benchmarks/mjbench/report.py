"""The report of MJ-Bench: tables, `mjbench.json` and `mjbench.md`, with published results for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fk_reward.benchmarks.mjbench.questions import BIAS
from fk_reward.benchmarks.mjbench.summary import (
    TIE_THRESHOLD,
    published_rows,
    summarize_bias,
    summarize_pairs,
    sweep_bias,
    sweep_ties,
)
from fk_reward.benchmarks.report import Column, Report, Table, write_tables
from fk_reward.benchmarks.store import ResultStore

RANGE = "{:.3f} to {:.3f}"
ACCURACY = Column("accuracy", style="{:.3f}")
WITHOUT_TIES = Column("accuracy_without_ties", "without ties", "{:.3f}")
TIES = Column("ties", style="{:.3f}")
SUBSET_COLUMNS = (
    Column("subset"),
    Column("num", "pairs", "{:d}"),
    Column("num_prompts", "captions", "{:d}"),
    ACCURACY,
    Column("low", "95 % interval", RANGE, ("high",)),
    WITHOUT_TIES,
    Column("decided_low", "95 % interval", RANGE, ("decided_high",)),
    TIES,
)
BIAS_MEASURES = (ACCURACY, Column("nds", "NDS", "{:.3f}"), Column("ges", "GES", "{:.3f}"))
BIAS_COLUMNS = (
    Column("subset", "caption"),
    Column("num", "images", "{:d}"),
    *(
        part
        for measure in BIAS_MEASURES
        for part in (measure, Column(f"{measure.key}_low", "95 % interval", RANGE, (f"{measure.key}_high",)))
    ),
)
THRESHOLD = Column("tie_threshold", "tie threshold", "{:.4g}")
MODEL, SOURCE = Column("model"), Column("source")


def summarize(
    store: ResultStore, *, tie_threshold: float | None = None, thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """All figures of a run.

    Args:
        store: results of one reward on one perspective.
        tie_threshold: scores that differ by no more tie; None for 0, or MJ-Bench's own threshold for bias.
        thresholds: those of the sweep; None for the defaults of `sweep_ties` and `sweep_bias`.

    Returns:
        `settings`, `num_done` questions, `tie_threshold`, `rows` (all, then each subset), `sweep`, `published`.

    Raises:
        ValueError: no results, or a threshold below 0 or not finite.
    """
    results, perspective = store.answers(), store.settings["perspective"]
    is_bias = perspective == BIAS
    if tie_threshold is None:
        tie_threshold = TIE_THRESHOLD if is_bias else 0.0
    measure, sweep = (summarize_bias, sweep_bias) if is_bias else (summarize_pairs, sweep_ties)
    return {
        "settings": store.settings,
        "num_done": len(results),
        "tie_threshold": tie_threshold,
        "rows": measure(results, tie_threshold=tie_threshold),
        "sweep": sweep(results, thresholds),
        "published": published_rows(perspective) if store.settings["suite"] == "official" else [],
    }


def report_tables(summary: dict[str, Any]) -> list[Table]:
    """The tables of `summarize`'s figures; published results only beside the official suite."""
    is_bias = summary["settings"]["perspective"] == BIAS
    measures = BIAS_MEASURES if is_bias else (ACCURACY, WITHOUT_TIES)
    sweep = (THRESHOLD, ACCURACY) if is_bias else (THRESHOLD, TIES, ACCURACY, WITHOUT_TIES)
    own = {**summary["rows"][0], "model": summary["settings"]["reward"], "source": "this run"}
    tables = [
        Table("Results", BIAS_COLUMNS if is_bias else SUBSET_COLUMNS, summary["rows"]),
        Table("By tie threshold", sweep, summary["sweep"]),
    ]
    if summary["published"]:
        tables.append(Table("Beside published results", (MODEL, *measures, SOURCE), [own, *summary["published"]]))
    return tables


def write_report(
    store: ResultStore, *, tie_threshold: float | None = None, thresholds: Sequence[float] | None = None
) -> Report:
    """Write `mjbench.json`, `.md` and `.tex` beside the results. Arguments: as for `summarize`."""
    summary = summarize(store, tie_threshold=tie_threshold, thresholds=thresholds)
    tables, title = report_tables(summary), _title(summary)
    return Report(title, tables, write_tables(store.folder / "mjbench", title, tables, content=summary))


def _title(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    done = f"{summary['num_done']} of {settings['num_questions']} questions"
    scores = "preference probabilities" if settings["compares"] else "scores"
    return (
        f"MJ-Bench ({settings['suite']}), {settings['perspective']}: {settings['reward']}, {done}, by {scores}, "
        f"tie threshold {summary['tie_threshold']:g}"
    )
