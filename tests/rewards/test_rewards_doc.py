"""The pages that commands write are what the commands would write now."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fk_reward.cli.rewards import reward_page
from fk_reward.rewards import REWARDS, RewardCard, SafetyFacts, reward_card

PAGE = Path(__file__).parents[2] / "docs" / "reward_cards.md"


def cards():
    return [reward_card(name) for name in sorted(REWARDS)]


def test_the_page_has_the_cards():
    assert PAGE.read_text(encoding="utf-8") == reward_page(cards()), (
        "write it anew: fk-reward rewards --markdown > docs/reward_cards.md"
    )


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RewardCard)])
def test_the_page_shows_every_field(field):
    changed = {"higher_is_better": False, "differentiable": False, "typical_range": (3.0, 4.0), "spread": 7.0}
    changed |= {"max_prompt_tokens": 5, "blind_to": ("edges",), "biases": ("x",)}
    changed |= {"safety": SafetyFacts(safe_above=0.5, missed=(1, 9))}
    card = RewardCard(name="a", summary="b", differentiable=True)
    other = dataclasses.replace(card, **{field: changed.get(field, "something else")})
    assert reward_page([other]) != reward_page([card])


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_no_fact_of_a_card_is_left_open(name):
    card = reward_card(name)
    stated = (card.looks_at, card.licence, card.source, card.weights, card.memory)
    assert "not stated" not in stated
    assert card.spread is None or card.spread_source != "not stated"
    for bias in card.biases:
        assert any(
            mark in bias for mark in ("arXiv", "distill.pub", "examples/", "documentation", "by construction")
        ), f"{name}: where is this from? {bias}"


@pytest.mark.parametrize("name", sorted(REWARDS))
@pytest.mark.parametrize(
    "fact", ["polarity", "looks at", "licence", "source", "spread", "known biases", "probes of the doctor"]
)
def test_a_card_says(name, fact):
    lines = [line for line in reward_page([reward_card(name)]).splitlines() if line.startswith(f"- {fact}: ")]
    assert len(lines) == 1 and len(lines[0]) > len(f"- {fact}: ")


def test_a_bar_does_not_end_a_cell():
    table = [line for line in reward_page([RewardCard(name="a", summary="b | c")]).splitlines() if line.startswith("|")]
    assert "b \\| c" in table[2]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_headings_can_be_reached():
    page = reward_page([RewardCard(name="a.b@c-d", summary="e")])
    assert "[`a.b@c-d`](#abc-d)" in page, "GitHub leaves out dots and @"
    assert "## `a.b@c-d`" in page


def test_lower_is_better_is_said():
    assert "| harm (lower is better) |" in reward_page([RewardCard(name="a", summary="harm", higher_is_better=False)])
