"""`fk-reward compare`: two finished runs, perhaps of different people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, named_path


def compare(
    first: Path,
    second: Path,
    /,
    *,
    report: Annotated[Path | None, Parameter(converter=named_path, group=OUTPUT)] = None,
) -> None:
    """Compare two finished runs of the same prompts by the same judge, and say what differs between them.

    Args:
        first: Folder of a run; differences are the first less the second.
        second: Folder of another run.
        report: Folder for the tables as JSON, Markdown and LaTeX; they are only shown if not given.
    """
    from fk_reward.benchmarks.comparison import compare_runs
    from fk_reward.benchmarks.report import show_report

    show_report(compare_runs(first, second, out=report))
