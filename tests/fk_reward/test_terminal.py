"""Text on the terminal is what was typed, and rich is known in one place."""

from __future__ import annotations

import ast
import io
import sys

import pytest

from fk_reward.terminal import TextTable, log_handler, open_console, progress_bars, say, say_error, tolerate_any_text
from fk_reward.text import visible
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files

HOSTILE = (
    "a [cat|dog]",
    "a [/red] star",
    "[bold]x[/bold]",
    ":smile: 3.14 'quoted'",
    "\x1b[31mred",
    "a\nb",
    "\ud83d x",
    "[@click=f]",
)


def _printed(table: TextTable) -> str:
    console = open_console(io.StringIO())
    console.width = 200
    table.print(console)
    return console.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_shows_titles_headings_and_cells_as_typed(text):
    table = TextTable(f"T {text}")
    table.add_column(f"H {text}")
    table.add_row(f"C {text}")
    printed = _printed(table)
    for place in "THC":
        assert f"{place} {visible(text)}" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_and_errors_are_shown_as_typed(text, capsys):
    say(text)
    say_error(ValueError(f"bad {text}"))
    captured = capsys.readouterr()
    assert captured.out == f"{visible(text)}\n"
    assert captured.err.splitlines() == [visible(line) for line in f"Error: bad {text}".split("\n")]


def test_a_long_line_is_not_broken(capsys):
    say("/folder" * 60)
    assert capsys.readouterr().out == "/folder" * 60 + "\n"


def test_log_messages_are_shown_as_typed(capsys):
    import logging

    handler = log_handler()
    handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "%s", ("row [/x] \x1b[31m",), None))
    assert "row [/x] \\x1b[31m" in capsys.readouterr().err


def test_labels_of_bars_are_shown_as_typed():
    console = open_console(io.StringIO())
    console.width = 100
    with progress_bars(console) as bars:
        bars.add_task("[/x] fk", total=2)
    assert "[/x] fk" in console.file.getvalue()


def test_a_stream_that_knows_ascii_only_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    tolerate_any_text()
    say("✓ 猫")
    assert raw.getvalue() == b"\\u2713 \\u732b\n"


def test_nothing_else_imports_rich():
    for path in python_files(*LIBRARY_FOLDERS):
        if path.name == "terminal.py":
            continue
        tree = ast.parse((ROOT / path).read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert "rich" not in {name.split(".")[0] for name in names}, f"{path} prints past fk_reward/terminal.py"
