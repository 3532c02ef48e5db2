"""The lines `$ fk-reward ...` of README and docs/: no option is misspelt, and none that is needed is left out."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest

from fk_reward.cli.app import COMMANDS, GROUPS, RAW
from tests.command_line import run_command_line
from tests.repository.layout import documents
from tests.repository.snippets import commands

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


@pytest.mark.parametrize(
    "page", [page for page in documents() if commands(page.read_text())], ids=lambda page: page.name
)
def test_commands_can_be_typed(page, refusal):
    refused = {shlex.join(words): refusal(words) for words in commands(page.read_text())}
    assert {line: said for line, said in refused.items() if said} == {}


def test_what_the_demo_says_to_try_next_can_be_typed(refusal):
    said = import_module("fk_reward.cli.demo")._END.format(reward="clipscore")
    lines = re.findall(r"^  fk-reward (.+?)     ", said, re.MULTILINE)
    assert len(lines) == 3
    assert [found for line in lines if (found := refusal(shlex.split(line)))] == []


@pytest.mark.parametrize("line", ["generate star", "generate star --out o --modle sdxl", "gnerate star --out o"])
def test_mistakes_are_seen(line, refusal):
    (words,) = commands(f"```console\n$ fk-reward {line}  # so\n```\n")
    assert refusal(words), GROUPS
