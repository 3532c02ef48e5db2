"""From the text of a composition to its card or its reward."""

from __future__ import annotations

import re
from typing import Any

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.composition.composite_card import composite_card
from fk_reward.rewards.composition.parser import parse_expression


def is_composition(text: str) -> bool:
    """Whether a text that is no known name is meant as a composition: it has something that no name has.

    Example:
        >>> [is_composition(text) for text in ("a + b", "-a", "min(a)", "hpsv2.1", "a-reward@qwen", "")]
        [True, True, True, False, False, False]
    """
    return re.search(r"[\s+*/()<>=,]|^[-\d.]", text) is not None


def load_composition(text: str, options: dict[str, Any]) -> CompositeReward:
    """Load each reward that a composition names, once, and compose them; what `load_reward` calls.

    Raises:
        ExpressionError: a ValueError that shows the place, before anything is loaded.
        TypeError: for options.

    Example:
        >>> load_composition("0.5*shapes-verifier + 1", {}).card.typical_range
        (1.0, 1.5)
    """
    from fk_reward.rewards.registry import load_reward, reward_card

    if options:
        raise TypeError(
            f"Options {sorted(options)} cannot be given to a composition: load the parts with their options and "
            "compose the objects, as in 0.5 * load_reward('clipscore', scale=100.0) + 0.5 * load_reward('...')."
        )
    expression, cards = parse_expression(text, reward_card)
    composite_card(expression, cards)  # what it refuses is refused before weights are read
    return CompositeReward(expression, {name: load_reward(name) for name in expression.names})


def composition_card(text: str) -> RewardCard:
    """The card of a composition, without loading weights; what `reward_card` calls.

    Raises:
        ExpressionError: a ValueError that shows the place.

    Example:
        >>> composition_card("shapes-clipscore / 2").spread
        0.035
    """
    from fk_reward.rewards.registry import reward_card

    return composite_card(*parse_expression(text, reward_card))
