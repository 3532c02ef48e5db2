"""`fk-reward rewards`."""

from __future__ import annotations

import json

import pytest

from fk_reward.cli.rewards import reward_page
from fk_reward.rewards import REWARDS, reward_card


def test_table_has_every_reward(run):
    result = run("rewards")
    assert result.exit_code == 0, result.output
    for name in REWARDS:
        assert name in result.stdout


def test_json_has_every_field(run):
    record = json.loads(run("rewards", "brightness", "clipscore", "--json").stdout)
    assert [card["name"] for card in record] == ["brightness", "clipscore"]
    assert record[0]["typical_range"] == [0.0, 1.0]
    assert set(record[0]) == set(vars(reward_card("clipscore")))


def test_markdown_is_the_page_of_the_cards(run):
    assert run("rewards", "brightness", "clipscore", "--markdown").stdout == reward_page(
        [reward_card("brightness"), reward_card("clipscore")]
    )


def test_markdown_without_names_has_all(run):
    page = run("rewards", "--markdown").stdout
    for name in REWARDS:
        assert f"\n## `{name}`\n" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["beauty"], "Unknown reward 'beauty'"), (["--json", "--markdown"], "Choose one of")],
)
def test_mistakes_are_told(refused, arguments, message):
    assert message in refused("rewards", *arguments)


def test_a_reward_that_cannot_be_imported_is_told_and_hides_no_other(run, monkeypatch):
    monkeypatch.setitem(REWARDS, "broken", "tests.cli.no_such_module:ENTRY")
    result = run("rewards")
    assert result.exit_code == 2
    assert "'broken'" in result.stderr and "cannot be imported" in result.stderr
    assert "clipscore" in result.stdout


def test_a_table_of_80_columns_has_whole_words_and_names(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("rewards").stdout.splitlines()
    assert max(len(line) for line in lines if line[:1] in "│┃┏└") <= 80
    names = {line.split("│")[1].strip() for line in lines if line.startswith("│")} - {""}
    assert set(REWARDS) <= names
    assert "cosine of CLIP ViT-L/14 image and" in "\n".join(lines)


def test_a_card_by_name_has_every_field(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(run("rewards", "clipscore").stdout.replace("│", " ").split())
    for text in ("0.1 to 0.35", "openai/clip-vit-large-patch14", "differentiable yes", "the central square"):
        assert text in said
