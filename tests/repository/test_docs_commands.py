"""The lines `$ fk-reward ...` of README and docs/: no option is misspelt, and none that is needed is left out."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest

from fk_reward.cli.app import COMMANDS, GROUPS, RAW
from tests.command_line import run_command_line
from tests.repository.layout import documents

LINE = re.compile(r"^\$ fk-reward ((?:.*\\\n)*.*)$", re.MULTILINE)
OF_THE_PARSER = (
    "Unknown option",
    "Unknown command",
    "Missing",
    "Unused Tokens",
    "Invalid value",
    "requires an argument",
)


def commands(text):
    """The lines of a text, without what stands behind them for the reader or for the shell."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = (shlex.split(line.replace("\\\n", " "), comments=True) for block in blocks for line in LINE.findall(block))
    return [words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&")), None)] for words in found]


def refusal(words, monkeypatch):
    """What the parser says against a line, without running it; nothing of files and names that are not here."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name in RAW:
        return None
    monkeypatch.setattr("fk_reward.cli.app._parsed", _only_parsed)
    result = run_command_line(*words)
    return result.stderr if any(said in result.stderr for said in OF_THE_PARSER) else None


def _only_parsed(tokens, app):
    from fk_reward.cli import app as module

    module.__dict__["_really_parsed"](tokens, app)
    raise SystemExit(0)


@pytest.fixture
def parser(monkeypatch):
    from fk_reward.cli import app as module

    monkeypatch.setattr(module, "_really_parsed", module._parsed, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "page", [page for page in documents() if commands(page.read_text())], ids=lambda page: page.name
)
def test_commands_can_be_typed(page, parser):
    refused = {shlex.join(words): refusal(words, parser) for words in commands(page.read_text())}
    assert {line: said for line, said in refused.items() if said} == {}


def test_what_the_demo_says_to_try_next_can_be_typed(parser):
    said = import_module("fk_reward.cli.demo")._END.format(reward="clipscore")
    lines = re.findall(r"^  fk-reward (.+?)     ", said, re.MULTILINE)
    assert len(lines) == 3
    assert [found for line in lines if (found := refusal(shlex.split(line), parser))] == []


@pytest.mark.parametrize("line", ["generate star", "generate star --out o --modle sdxl", "gnerate star --out o"])
def test_mistakes_are_seen(line, parser):
    (words,) = commands(f"```console\n$ fk-reward {line}  # so\n```\n")
    assert refusal(words, parser), GROUPS
