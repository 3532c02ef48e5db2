"""The commands of docs/benchmarks.md that need no download, with fewer prompts and steps: each runs, in their order."""

from __future__ import annotations

import json
import re

import pytest

from fk_reward.benchmarks.geneval.suites import SUITES
from tests.command_line import run_command_line
from tests.repository.layout import ROOT
from tests.repository.snippets import commands

SECTION = "## One command each, offline"
SMALLER = {
    "--num-prompts": "2",
    "--steps": "2",
    "--budgets": "4,8",
    "--num-pairs": "6",
    "--num-seeds": "2",
}
FIGURES = {"safety": "safety.json", "scaling": "scaling.json", "mjbench": "mjbench.json", "record": "records.npz"}
FIGURES |= {"pair-accuracy": "pair_accuracy.json"}


def typed():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    return commands(re.split(r"^(?=## )", text.partition(SECTION)[2], flags=re.MULTILINE)[0])


def in_small(words):
    """A command with less of everything."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def test_every_benchmark_has_a_line():
    assert {words[0] for words in typed()} == {"geneval", "benchmark", "compare", *FIGURES}
    named = {word for words in typed() for before, word in zip(words, words[1:], strict=False) if before == "--suite"}
    assert named >= set(SUITES) - {"official", "shapes-sign", "shapes-validation", "shapes-sign-validation"}


@pytest.mark.long
def test_each_line_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for words in typed():
        result = run_command_line(*in_small(words))
        assert result.exit_code == 0, f"{words}: {result.output}"
        if "--out" in words:
            out = tmp_path / words[words.index("--out") + 1]
            written = out / FIGURES.get(words[0], "report.json")
            assert written.stat().st_size > 0
            assert written.suffix != ".json" or json.loads(written.read_text())
