"""Validation of cards."""

from __future__ import annotations

import dataclasses
import math

import pytest

from fk_reward.rewards import RewardCard

CARD = RewardCard(name="a", summary="b", typical_range=(0, 1), spread=0.1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": 3}, TypeError),
        ({"summary": "two\nlines"}, ValueError),
        ({"licence": " "}, ValueError),
        ({"differentiable": "yes"}, TypeError),
        ({"higher_is_better": 1}, TypeError),
        ({"typical_range": (1, 0)}, ValueError),
        ({"typical_range": (0, math.nan)}, ValueError),
        ({"spread": 0.0}, ValueError),
        ({"spread": math.nan}, ValueError),
        ({"spread": math.inf}, ValueError),
        ({"max_prompt_tokens": 0}, ValueError),
    ],
)
def test_wrong_fields_raise(change, error):
    with pytest.raises(error, match=next(iter(change))):
        dataclasses.replace(CARD, **change)


def test_cards_are_frozen_and_take_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.name = "b"
    with pytest.raises(TypeError):
        RewardCard("a", "b")
