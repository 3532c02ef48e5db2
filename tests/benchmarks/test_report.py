"""Tables, JSON and typed lists."""

from __future__ import annotations

import io
import json

from rich.console import Console

from fk_reward.benchmarks.report import Column, markdown_table, show_table, write_json

COLUMNS = (Column("name"), Column("value", "mean ± se", "{:+.2f} ± {:.2f}", ("error",)))
ROWS = [{"name": "first", "value": 1.0, "error": 0.25}, {"name": "second", "value": None, "error": 1.0}]


def test_markdown():
    expected = "| name | mean ± se |\n| --- | --- |\n| first | +1.00 ± 0.25 |\n| second | - |"
    assert markdown_table(COLUMNS, ROWS) == expected


def test_terminal():
    file = io.StringIO()
    show_table("Title", COLUMNS, ROWS, console=Console(file=file, width=60))
    text = file.getvalue()
    assert "Title" in text
    assert "+1.00 ± 0.25" in text


def test_json(tmp_path):
    path = write_json(tmp_path / "new" / "rows.json", {"rows": ROWS})
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": ROWS}
