"""`fk-reward rewards`: the cards of the rewards that can be named."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fk_reward.cli.reward_page import card_summary, reward_page, typical_range
from fk_reward.terminal import TextTable

if TYPE_CHECKING:
    from fk_reward.rewards import RewardCard

HEADINGS = ("name", "what it measures", "typical range", "spread", "prompt tokens", "weights")
"""Columns that fit in a terminal; Markdown and JSON have every field of the cards."""


def rewards(
    names: Annotated[list[str] | None, typer.Argument(help="Names of rewards.", show_default="all of them")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write a page of Markdown with every field of the cards.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON with every field of the cards.")] = False,
) -> None:
    """List the rewards, without loading any weights.

    A reward that cannot be imported does not hide the others: it is told after them, and the exit code is 2.
    """
    if markdown and as_json:
        raise ValueError("Choose one of --markdown and --json.")
    cards, errors = _cards(names) if names else _all_cards()
    if as_json:
        typer.echo(json.dumps([_plain(card) for card in cards], indent=2, allow_nan=False))
    elif markdown:
        typer.echo(reward_page(cards), nl=False)
    else:
        _show(cards)
    if errors:
        raise ImportError("\n".join(errors))


def _cards(names: list[str]) -> tuple[list[RewardCard], list[str]]:
    from fk_reward.rewards import reward_card

    return [reward_card(name) for name in names], []


def _all_cards() -> tuple[list[RewardCard], list[str]]:
    """Cards of all registered rewards, and what is wrong with those that cannot be imported (other packages' too)."""
    from fk_reward.rewards import RewardLoadError, available_rewards, reward_card

    cards, errors = [], []
    for name in available_rewards():
        try:
            cards.append(reward_card(name))
        except RewardLoadError as error:
            errors.append(str(error))
    return cards, errors


def _plain(card: RewardCard) -> dict[str, Any]:
    """All fields; a range without bounds is null, because JSON has no infinity."""
    low, high = (None if math.isinf(bound) else bound for bound in card.typical_range)
    return asdict(card) | {"typical_range": [low, high]}


def _row(card: RewardCard) -> tuple[str, ...]:
    spread, tokens = (f"{value:g}" if value else "-" for value in (card.spread, card.max_prompt_tokens))
    return card.name, card_summary(card), typical_range(card), spread, tokens, card.weights


def _show(cards: list[RewardCard]) -> None:
    table = TextTable("Rewards", show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading == "name")
    for card in cards:
        table.add_row(*_row(card))
    table.print()
