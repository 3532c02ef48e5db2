"""Tables for the terminal and for Markdown, and JSON files, from rows that are plain dictionaries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fk_reward.durable_files import write_whole
from fk_reward.terminal import Console, TextTable, say, wide_console
from fk_reward.text import latex_text, markdown_text, visible

if TYPE_CHECKING:
    from fk_reward.benchmarks.statistics import Ends

RANGE, CHANGE = "{:.3f} [{:.3f}, {:.3f}]", "{:+.3f} [{:+.3f}, {:+.3f}]"
"""Styles of an estimate, or of a difference, with both ends of its interval."""


def interval_text(ends: Ends, style: str) -> str:
    """An estimate with its interval as text; alone where it has none.

    Args:
        ends: estimate, low and high.
        style: takes all three (`RANGE`, `CHANGE`), or with a ± the estimate and half the width.

    Example:
        >>> ends = {"estimate": 0.5, "low": 0.4, "high": 0.7}
        >>> interval_text(ends, CHANGE), interval_text(ends, "{:.2f} ± {:.2f}")
        ('+0.500 [+0.400, +0.700]', '0.50 ± 0.15')
        >>> interval_text({"estimate": 0.5, "low": None, "high": None}, RANGE)
        '0.500'
    """
    estimate, low, high = ends["estimate"], ends["low"], ends["high"]
    if low is None or high is None:
        return style.split()[0].format(estimate)
    return style.format(estimate, (high - low) / 2) if "±" in style else style.format(estimate, low, high)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of the rows.
        title: heading; the key when empty.
        style: format of a value, for instance `"{:.3f}"`.
        more: keys of further values that `style` takes, for instance of the error in `"{:.3f} ± {:.3f}"`.
    """

    key: str
    title: str = ""
    style: str = "{}"
    more: tuple[str, ...] = ()

    def heading(self) -> str:
        """The title, or else the key."""
        return self.title or self.key.replace("_", " ")

    def cell(self, row: Mapping[str, Any]) -> str:
        """The value of this column as text; a dash if the row lacks it."""
        values = [row.get(key) for key in (self.key, *self.more)]
        return "-" if None in values else self.style.format(*values)


class Table(NamedTuple):
    """A table of a report."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]


class Report(NamedTuple):
    """A report that has been written.

    Attributes:
        title: what was run.
        tables: its tables.
        files: the files.
        facts: sentences that are shown between the title and the tables.
    """

    title: str
    tables: list[Table]
    files: tuple[Path, ...]
    facts: tuple[str, ...] = ()


def show_report(report: Report, word: str = "Report") -> None:
    """Print a report's title, its tables and where its files are."""
    for line in (report.title, *report.facts):
        say(line)
    for table in report.tables:
        show_table(*table)
    if report.files:
        say(f"{word}: {', '.join(map(str, report.files))}")


def show_table(
    title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], *, console: Console | None = None
) -> None:
    """Print a table to the terminal.

    Example:
        >>> show_table("", [Column("k", "K")], [{"k": 4}], console=Console(width=20))
        ┏━━━┓
        ┃ K ┃
        ┡━━━┩
        │ 4 │
        └───┘
    """
    table = TextTable(title)
    for column in columns:
        table.add_column(column.heading(), right=column.style != "{}")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    table.print(console or wide_console())


def markdown_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The same table in Markdown.

    Example:
        >>> print(markdown_table([Column("k", "K"), Column("share", style="{:.2f}")], [{"k": 4, "share": 0.5}]))
        | K | share |
        | --- | --- |
        | 4 | 0.50 |
    """
    # Rows hold text of users, which is escaped; headings and styles are our own Markdown.
    texts = [{key: markdown_text(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    heading = [column.heading() for column in columns]
    lines = [[column.cell(row) for column in columns] for row in texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(columns), *lines))


def markdown_report(tables: Sequence[Table]) -> str:
    """All tables in Markdown."""
    return (
        "\n\n".join(
            f"### {markdown_text(table.title)}\n\n{markdown_table(table.columns, table.rows)}" for table in tables
        )
        + "\n"
    )


def latex_table(table: Table) -> str:
    r"""The same table in LaTeX, with the rules of the package booktabs; numbers to the right.

    Example:
        >>> columns = (Column("k", "K"), Column("share", style="{:.2f}"))
        >>> print(latex_table(Table("Sizes", columns, [{"k": 4, "share": 0.5}])))
        \begin{table}
        \caption{Sizes}
        \begin{tabular}{lr}
        \toprule
        K & share \\
        \midrule
        4 & 0.50 \\
        \bottomrule
        \end{tabular}
        \end{table}
    """
    sides = "".join("l" if column.style == "{}" else "r" for column in table.columns)
    heading = [latex_text(column.heading()) for column in table.columns]
    lines = [[latex_text(column.cell(row)) for column in table.columns] for row in table.rows]
    body = [f"{' & '.join(line)} \\\\" for line in (heading, *lines)]
    begin = ["\\begin{table}", f"\\caption{{{latex_text(table.title)}}}", f"\\begin{{tabular}}{{{sides}}}"]
    ends = ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join([*begin, "\\toprule", body[0], "\\midrule", *body[1:], *ends])


def write_tables(
    stem: Path, title: str, tables: Sequence[Table], *, facts: Sequence[str] = (), content: Any = None
) -> tuple[Path, ...]:
    """Write tables in three forms: JSON with all figures, Markdown to read, LaTeX to paste.

    Args:
        stem: path without its ending.
        title: heading.
        tables: as they are shown.
        facts: sentences below the heading.
        content: of the JSON file; the tables as they are shown if not given.

    Returns:
        The files: `.json`, `.md`, `.tex`.
    """
    shown = [{"title": one.title, "rows": [_shown(one, row) for row in one.rows]} for one in tables]
    content = {"title": title, "facts": list(facts), "tables": shown} if content is None else content
    text = "\n\n".join([f"# {markdown_text(title)}", *map(markdown_text, facts), markdown_report(tables)])
    said = [f"% {visible(line)}" for line in (title, *facts, "needs \\usepackage{booktabs}")]
    latex = "\n\n".join(["\n".join(said), *map(latex_table, tables)])
    return (
        write_json(stem.with_name(f"{stem.name}.json"), content),
        write_whole(stem.with_name(f"{stem.name}.md"), text),
        write_whole(stem.with_name(f"{stem.name}.tex"), f"{latex}\n"),
    )


def _shown(table: Table, row: Mapping[str, Any]) -> dict[str, str]:
    return {column.heading(): column.cell(row) for column in table.columns}


def write_json(path: str | Path, content: Any) -> Path:
    """Write a JSON file, complete or not at all; its folder is made if it is missing."""
    return write_whole(path, json.dumps(content, indent=2) + "\n")
