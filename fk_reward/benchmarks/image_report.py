"""The report of all runs in a folder: tables as JSON, Markdown and LaTeX, `report.html` and `images.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.gallery import write_gallery
from fk_reward.benchmarks.image_results import RunResult, compare_methods, read_runs, summarize
from fk_reward.benchmarks.judge_scores import judge_rows, judge_tables, write_score_lists
from fk_reward.benchmarks.page import html_report
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Report, Table, interval_text, write_tables
from fk_reward.benchmarks.statistics import OVERALL, Ends
from fk_reward.durable_files import cosmetic, write_whole

RUN_COLUMNS = (Column("method"), Column("reward"), Column("num_particles", "K", "{:d}"))
COUNT_COLUMNS = (
    Column("correct_prompts", "prompts with a correct image", "{:.3f}"),
    Column("num_prompts", "prompts", "{:d}"),
    Column("num_images", "images", "{:d}"),
)
COST_COLUMNS = (
    Column("model_calls", "denoiser calls", "{:.1f}"),
    Column("model_rows", "denoiser rows", "{:.1f}"),
    Column("decodes", style="{:.1f}"),
    Column("reward_calls", "images scored", "{:.1f}"),
    Column("seconds", style="{:.2f}"),
)
POPULATION_COLUMNS = (
    Column("num_ancestors", "ancestors left", "{:.2f}"),
    Column("reward_spread", "reward spread", "{:.3f}"),
    Column("distance", "pixel distance", "{:.3f}"),
)
DIFFERENCE_COLUMNS = (Column("run"), Column("minus"))
RATIO = "{:.2f} [{:.2f}, {:.2f}]"


def report_tables(rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]] = ()) -> list[Table]:
    """The tables that have something in them, the intervals as text.

    Args:
        rows: of `summarize`.
        differences: of `compare_methods`.
    """
    tasks = list(dict.fromkeys(task for row in rows for task in row["accuracy"] if task != OVERALL))
    accuracy = (Column(OVERALL, "overall [95 %]"), *(Column(task, task.replace("_", " ")) for task in tasks))
    rewards = _interval_columns(rows, "scores")
    gains = [_gain_cells(row) for row in rows if row["difference"] is not None]
    scored = [row for row in rows if any(row["score_differences"].values())]
    tables = [
        Table("Accuracy", RUN_COLUMNS + accuracy + COUNT_COLUMNS, [_accuracy_cells(row) for row in rows]),
        Table("Paired differences of accuracy to unsteered", RUN_COLUMNS + accuracy, gains),
        Table(
            "Paired differences of accuracy at equal K",
            DIFFERENCE_COLUMNS + accuracy,
            [_gain_cells(row) for row in differences],
        ),
        Table("Mean rewards", RUN_COLUMNS + rewards, [_cells(row, row["scores"], RANGE) for row in rows if rewards]),
        Table(
            "Paired differences of rewards to unsteered",
            RUN_COLUMNS + rewards,
            [_cells(row, row["score_differences"], CHANGE) for row in scored],
        ),
        _flag_table(rows),
        Table(
            "Populations",
            RUN_COLUMNS + POPULATION_COLUMNS,
            [{**row, **row["population"]} for row in rows if row["population"]],
        ),
        Table("Cost of an image", RUN_COLUMNS + COST_COLUMNS, [{**row, **row["cost"]} for row in rows if row["cost"]]),
    ]
    return [table for table in tables if table.rows]


def _interval_columns(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Column, ...]:
    return tuple(Column(name, f"{name} [95 %]") for name in dict.fromkeys(n for row in rows for n in row[key]))


def _flag_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    rates = _interval_columns(rows, "flags")
    ratios = tuple(Column(f"{rate.key} ratio", f"{rate.key}, ratio to unsteered [95 %]") for rate in rates)
    cells = []
    for row in (row for row in rows if row["flags"]):
        found = {f"{name} ratio": ratio for name, ratio in row["flag_ratios"].items()}
        cells.append(_cells(_cells(row, row["flags"], RANGE), found, RATIO))
    return Table("Flagged images", RUN_COLUMNS + rates + ratios, cells)


def _accuracy_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**_cells(row, row["accuracy"], "{:.2f} ± {:.2f}"), OVERALL: interval_text(row["accuracy"][OVERALL], RANGE)}


def _gain_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_cells(row, row["difference"], "{:+.2f} ± {:.2f}"),
        OVERALL: interval_text(row["difference"][OVERALL], CHANGE),
    }


def _cells(row: Mapping[str, Any], intervals: Mapping[str, Ends | None], style: str) -> dict[str, Any]:
    """The row with intervals as text."""
    return {**row, **{name: interval_text(ends, style) for name, ends in intervals.items() if ends is not None}}


def write_report(folder: Path, *, num_shown: int = 60) -> Report:
    """Write the report of all runs in a folder: the figures first, then the page that shows them.

    A page that fails, because an image is damaged or a font is missing, is a warning; the measurements are written.

    Args:
        folder: holds the runs, or is itself a folder of images in GenEval's layout.
        num_shown: prompts whose images the HTML page shows.

    Raises:
        FileNotFoundError: no runs.
        ValueError: images that are not judged, or runs that cannot be compared.
    """
    runs = read_runs(folder)
    rows, differences = summarize(runs), compare_methods(runs)
    scores = judge_rows(runs)
    title, facts = _title(runs), _facts(runs)
    tables = with_judge_scores(report_tables(rows, differences), scores)
    summary = {"title": title, "judge": runs[0].judge, "runs": rows, "differences": differences}
    summary |= {"judge_scores": scores} if scores else {}
    for run in runs:
        write_score_lists(run)
    # The figures before the pages: whatever fails there, they are on disk, and only files that exist are returned.
    files = write_tables(folder / "report", title, tables, facts=(facts,), content=summary)
    page = folder / "report.html"
    with cosmetic(f"writing {page}"):
        html = html_report(runs, rows, tables=tables, title=title, facts=facts, num_shown=num_shown)
        files = (*files, write_whole(page, html))
    browsed = write_gallery(folder, runs, title=title, facts=(facts,), tables=tables, num_shown=num_shown)
    return Report(title, tables, (*files, *browsed))


def with_judge_scores(tables: list[Table], scores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of a report with those of a judge of questions behind the accuracies.

    Args:
        tables: of `report_tables`.
        scores: of `judge_scores.judge_rows`.
    """
    place = next((index for index, table in enumerate(tables) if "ccuracy" not in table.title), len(tables))
    return [*tables[:place], *judge_tables(scores), *tables[place:]]


def _settings(runs: Sequence[RunResult]) -> dict[str, Any] | None:
    return None if runs[0].manifest is None else dict(runs[0].manifest["settings"])


def _title(runs: Sequence[RunResult]) -> str:
    settings = _settings(runs)
    if settings is None:
        return f"GenEval: {runs[0].name}"
    name = "Benchmark" if runs[0].judge["judge"] == "questions" else "GenEval, suite"
    return f"{name} {settings['suite']}: {settings['model']}"


def _facts(runs: Sequence[RunResult]) -> str:
    settings, run = _settings(runs), runs[0]
    num_prompts = len({image.index for image in run.images})
    details = ", ".join(f"{name} {value}" for name, value in run.judge.items() if name != "judge")
    facts = f"{num_prompts} prompts, {len(run.images)} images a run, judged by {run.judge['judge']} ({details})."
    if settings is not None:
        guidance = settings.pop("guidance_scale")
        facts += f" {settings['num_steps']} steps, guidance {guidance or 'of the pipeline'}, seed {settings['seed']}."
    return f"{facts} Brackets and ± are 95 % bootstrap intervals over prompts."
