"""The report of all runs in a folder: tables, `report.json`, `report.md` and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fk_reward.benchmarks.geneval.html_report import html_report
from fk_reward.benchmarks.geneval.report_tables import report_tables
from fk_reward.benchmarks.geneval.run_results import RunResult, read_runs
from fk_reward.benchmarks.geneval.summary import summarize
from fk_reward.benchmarks.reports import Table, markdown_report
from fk_reward.cosmetic import cosmetic
from fk_reward.durable_files import write_whole
from fk_reward.user_text import markdown_text


class Report(NamedTuple):
    """A report that has been written.

    Attributes:
        title: what was run.
        tables: its tables.
        files: the files.
    """

    title: str
    tables: list[Table]
    files: tuple[Path, ...]


def write_report(folder: Path, *, num_shown: int = 60) -> Report:
    """Write the report of all runs in a folder: the figures first, then the page that shows them.

    A page that cannot be made, because an image is damaged or a font is missing, is a warning; what was measured is
    written.

    Args:
        folder: holds the runs, or is itself a folder of pictures in GenEval's layout.
        num_shown: prompts whose pictures the HTML page shows.

    Raises:
        FileNotFoundError: no runs.
        ValueError: pictures that are not judged, or runs that cannot be compared.
    """
    runs = read_runs(folder)
    rows = summarize(runs)
    title, facts, tables = _title(runs), _facts(runs), report_tables(rows)
    summary = {"title": title, "judge": runs[0].judge, "runs": rows}
    markdown = f"# {markdown_text(title)}\n\n{markdown_text(facts)}\n\n{markdown_report(tables)}"
    files = [folder / name for name in ("report.json", "report.md", "report.html")]
    write_whole(files[0], json.dumps(summary, indent=2) + "\n")
    write_whole(files[1], markdown)
    with cosmetic(f"writing {files[2]}"):
        page = html_report(runs, rows, tables=tables, title=title, facts=facts, num_shown=num_shown)
        write_whole(files[2], page)
        return Report(title, tables, tuple(files))
    return Report(title, tables, tuple(files[:2]))


def _settings(runs: Sequence[RunResult]) -> dict[str, Any] | None:
    return None if runs[0].manifest is None else dict(runs[0].manifest["settings"])


def _title(runs: Sequence[RunResult]) -> str:
    settings = _settings(runs)
    return f"GenEval: {runs[0].name}" if settings is None else "GenEval, suite {suite}: {model}".format(**settings)


def _facts(runs: Sequence[RunResult]) -> str:
    settings, run = _settings(runs), runs[0]
    num_prompts = len({picture.index for picture in run.pictures})
    details = ", ".join(f"{name} {value}" for name, value in run.judge.items() if name != "judge")
    facts = f"{num_prompts} prompts, {len(run.pictures)} pictures a run, judged by {run.judge['judge']} ({details})."
    if settings is not None:
        guidance = settings.pop("guidance_scale")
        facts += f" {settings['num_steps']} steps, guidance {guidance or 'of the pipeline'}, seed {settings['seed']}."
    return f"{facts} Brackets and ± are 95 % bootstrap intervals over prompts."
