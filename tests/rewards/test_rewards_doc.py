"""The table of cards in docs/rewards.md says what the cards say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fk_reward.rewards import REWARDS, reward_card

DOC = Path(__file__).parents[2] / "docs" / "rewards.md"


def row(card):
    low, high = card.typical_range
    cells = [
        f"`{card.name}`",
        card.summary,
        f"{low:g} to {high:g}" if math.isfinite(high - low) else "not known",
        "not measured" if card.spread is None else f"{card.spread:g}",
        "yes" if card.differentiable else "no",
        "no limit" if card.max_prompt_tokens is None else str(card.max_prompt_tokens),
        card.weights,
        card.licence,
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", REWARDS)
def test_the_table_has_the_card(name):
    assert row(reward_card(name)) in DOC.read_text(encoding="utf-8").splitlines()


def test_the_table_has_no_other_rewards():
    table = DOC.read_text(encoding="utf-8").split("<!-- cards")[1].split("<!-- end of cards")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} <= set(REWARDS)
