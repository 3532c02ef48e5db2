"""Tables, JSON and typed lists."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import pytest
from rich.console import Console

from fk_reward.benchmarks.report import Column, Table, markdown_table, show_table, write_json, write_tables

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


SPECIAL = r"50 % of {a_b} & #1 ~ ^ \ $x$ <|> 0.5 ± 0.1"


def test_tables_in_three_forms(tmp_path):
    table = Table(
        "On $x$", (Column("name"), Column("share", style="{:.2f}")), [{"name": SPECIAL, "share": 0.5}, {"name": "b"}]
    )
    files = write_tables(tmp_path / "some", "A title", [table], facts=("One fact.",))
    assert [path.name for path in files] == ["some.json", "some.md", "some.tex"]
    content = json.loads(files[0].read_text())
    assert content["tables"][0]["rows"][0] == {"name": SPECIAL, "share": "0.50"}
    assert "One fact." in files[1].read_text() and "| b | - |" in files[1].read_text()
    latex = files[2].read_text()
    assert "\\caption{On \\$x\\$}" in latex and "\\begin{tabular}{lr}" in latex
    assert "50 \\% of \\{a\\_b\\} \\& \\#1 \\textasciitilde{}" in latex and "b & - \\\\" in latex
    assert latex.startswith("% A title\n% One fact.\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_reads_them(tmp_path):
    table = Table(SPECIAL, (Column("name"),), [{"name": SPECIAL}])
    write_tables(tmp_path / "some", SPECIAL, [table])
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "all.tex").write_text(f"{head}\\input{{some}}\\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
