"""The lines `$ fk-reward ...` of README and docs/: no option is misspelt, and none that is needed is left out."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest

from fk_reward.benchmarks.runner import Share
from fk_reward.cli.app import COMMANDS, GROUPS, RAW
from tests.command_line import run_command_line
from tests.repository.layout import documents
from tests.repository.snippets import commands, inline_commands

OF_THE_PARSER = (
    "Unknown option",
    "Unknown command",
    "Missing",
    "Unused Tokens",
    "Invalid value",
    "requires an argument",
)


@pytest.fixture
def refusal(monkeypatch):
    """What the parser says against a line, without running it; nothing of files and names that are not here."""
    from fk_reward.cli import app

    parsed = app._parsed

    def only_parsed(tokens, application):
        parsed(tokens, application)
        raise SystemExit(0)

    def refused(words):
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        if name in RAW:
            return None
        result = run_command_line(*words)
        return result.stderr if any(said in result.stderr for said in OF_THE_PARSER) else None

    monkeypatch.setattr(app, "_parsed", only_parsed)
    return refused


def lines(page):
    """All commands of a page."""
    text = page.read_text()
    return [*commands(text), *inline_commands(text)]


@pytest.mark.parametrize("page", [page for page in documents() if lines(page)], ids=lambda page: page.name)
def test_commands_can_be_typed(page, refusal):
    refused = {shlex.join(words): refusal(words) for words in lines(page)}
    assert {line: said for line, said in refused.items() if said} == {}


def begins(words):
    """What a command says before it draws: 0 where it would begin to write into its folder."""
    result = run_command_line(*words)
    return result.stderr if result.exit_code else None


def measured_offline():
    """The commands of all pages that measure on the shapes world, which is there without a network or a file."""
    found = [(page.name, words) for page in documents() for words in lines(page)]
    return [
        pytest.param(words, id=f"{page}: {shlex.join(words)}")
        for page, words in found
        if words[0] in ("geneval", "scaling") and "shapes" in words and not any(word.isupper() for word in words)
    ]


@pytest.mark.parametrize("words", measured_offline())
def test_measurements_on_shapes_begin(words, monkeypatch, tmp_path):
    """A budget that buys nothing, methods that do not go together: told before the folder is made, so by no parser."""

    def held(share, folder):
        raise SystemExit(0)

    monkeypatch.setattr(Share, "hold", held)
    monkeypatch.chdir(tmp_path)
    assert begins(words) is None


def test_a_measurement_that_would_not_begin_is_seen(tmp_path):
    assert "two images" in begins(["scaling", "--suite", "shapes", "--budgets", "80", "--out", str(tmp_path / "out")])


def test_what_the_demo_says_to_try_next_can_be_typed(refusal):
    said = import_module("fk_reward.cli.demo")._END.format(reward="clipscore")
    told = re.findall(r"^  fk-reward (.+?)     ", said, re.MULTILINE)
    assert len(told) == 3
    assert [found for line in told if (found := refusal(shlex.split(line)))] == []


@pytest.mark.parametrize("line", ["generate star", "generate star --out o --modle sdxl", "gnerate star --out o"])
def test_mistakes_are_seen(line, refusal):
    (words,) = commands(f"```console\n$ fk-reward {line}  # so\n```\n")
    assert refusal(words), GROUPS
