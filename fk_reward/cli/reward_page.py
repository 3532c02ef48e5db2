"""The cards of rewards as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fk_reward.rewards import RewardCard

_INTRODUCTION = """\
# Reward cards

Written by `fk-reward rewards --markdown` from the cards in the code; change them there. *Not measured* and *not known*
mean that nobody has a figure. [rewards.md](rewards.md) is about how the rewards are used."""

_HEADINGS = ("name", "what it measures", "typical range", "spread", "gradient", "prompt tokens")


def typical_range(card: RewardCard) -> str:
    """The range of ordinary scores in words.

    Example:
        >>> from fk_reward.rewards import reward_card
        >>> typical_range(reward_card("clipscore")), typical_range(reward_card("llava-reward"))
        ('0.1 to 0.35', 'not known')
    """
    low, high = card.typical_range
    if math.isinf(low) and math.isinf(high):
        return "not known"
    return f"{low:g} to {high:g}"


def card_summary(card: RewardCard) -> str:
    """What a reward measures, and whether lower is better.

    Example:
        >>> from fk_reward.rewards import reward_card
        >>> card_summary(reward_card("clipscore"))
        'cosine of CLIP ViT-L/14 image and text embeddings'
    """
    return card.summary if card.higher_is_better else f"{card.summary} (lower is better)"


def reward_page(cards: Sequence[RewardCard]) -> str:
    """A table that compares the cards, and of each below it where it comes from; ends with a line break.

    Example:
        >>> from fk_reward.rewards import reward_card
        >>> page = reward_page([reward_card("clipscore")])
        >>> next(line for line in page.splitlines() if line.startswith("| [")).split(" | ")[2:]
        ['0.1 to 0.35', '0.02', 'yes', '77 |']
    """
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *(_row(card) for card in cards)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return "\n\n".join([_INTRODUCTION, table, *(_section(card) for card in cards)]) + "\n"


def _row(card: RewardCard) -> tuple[str, ...]:
    return (
        f"[`{card.name}`](#{_anchor(card.name)})",
        card_summary(card),
        typical_range(card),
        "not measured" if card.spread is None else f"{card.spread:g}",
        "yes" if card.differentiable else "no",
        "no limit" if card.max_prompt_tokens is None else str(card.max_prompt_tokens),
    )


def _section(card: RewardCard) -> str:
    facts = {"weights": card.weights, "memory": card.memory, "licence": card.licence, "source": card.source}
    return f"## `{card.name}`\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _anchor(name: str) -> str:
    """The address that GitHub gives a heading: lower case, without punctuation but hyphens."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "-_")
