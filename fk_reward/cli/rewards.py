"""`fk-reward rewards`: the cards of the rewards that can be named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT
from fk_reward.terminal import TextTable, open_console, say, write_document

if TYPE_CHECKING:
    from fk_reward.rewards import RewardCard, SafetyFacts

_INTRODUCTION = """\
# Reward cards

Written by `fk-reward rewards --markdown` from the cards in the code; change them there. *Not measured* and *not known*
mean that there is no figure. [rewards.md](rewards.md) is about how the rewards are used."""

_PAGE_HEADINGS = ("name", "what it measures", "typical range", "spread", "gradient", "prompt tokens")

UNASKED = {"prompt": ("prompt",), "quality": ("blank", "blur"), "edges": ("crop",)}
"""What a score need not depend on, as in `RewardCard.blind_to` -> probes of the doctor that do not ask for it."""

HEADINGS = ("name", "what it measures", "typical range", "spread", "prompt tokens", "weights")
"""Columns of a wide terminal; cards that are asked for by name, Markdown and JSON have every field."""
NARROW = ("name", "what it measures", "spread")
"""Columns of a terminal of 80 characters, where six would be ten letters wide."""
_WIDE = 140


def rewards(
    names: list[str] | None = None,
    /,
    *,
    markdown: Annotated[bool, Parameter(group=OUTPUT)] = False,
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """List the rewards, without loading any weights.

    A reward that cannot be imported does not hide the others: it is reported after them, and the exit code is 2.

    Args:
        names: Rewards whose whole cards are shown; a table of all of them if none is given.
        markdown: Write a page of Markdown with every field of the cards.
        as_json: Write JSON with every field of the cards.
    """
    if markdown and as_json:
        raise ValueError("Choose one of --markdown and --json.")
    cards, errors = _cards(names) if names else _all_cards()
    if as_json:
        write_document(json.dumps([_plain(card) for card in cards], indent=2, allow_nan=False))
    elif markdown:
        write_document(reward_page(cards))
    elif names:
        for card in cards:
            _show_card(card)
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
    console = open_console()
    headings = HEADINGS if console.width >= _WIDE else NARROW
    table = TextTable("Rewards", show_lines=True)
    for heading in headings:
        table.add_column(heading, no_wrap=heading == "name", right=heading == "spread")
    for card in cards:
        cells = dict(zip(HEADINGS, _row(card), strict=True))
        table.add_row(*(cells[heading] for heading in headings))
    table.print(console)
    say("fk-reward rewards NAME shows range, weights, memory and licence of one; --json and --markdown those of all.")


def _show_card(card: RewardCard) -> None:
    table = TextTable(card.name, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("")
    for field, value in asdict(card).items():
        if field not in ("name", "higher_is_better", "summary", "typical_range"):
            table.add_row(field.replace("_", " "), _said(value))
        elif field == "summary":
            table.add_row("what it measures", card_summary(card))
        elif field == "typical_range":
            table.add_row("typical range", typical_range(card))
    table.print()


def _said(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')} {_said(part)}" for name, part in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


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
    lines = [_PAGE_HEADINGS, ("---",) * len(_PAGE_HEADINGS), *(_page_row(card) for card in cards)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return "\n\n".join([_INTRODUCTION, table, *(_section(card) for card in cards)]) + "\n"


def _page_row(card: RewardCard) -> tuple[str, ...]:
    return (
        f"[`{card.name}`](#{_anchor(card.name)})",
        card_summary(card),
        typical_range(card),
        "not measured" if card.spread is None else f"{card.spread:g}",
        "yes" if card.differentiable else "no",
        "no limit" if card.max_prompt_tokens is None else str(card.max_prompt_tokens),
    )


def _section(card: RewardCard) -> str:
    from fk_reward.rewards import RewardCard

    facts = {"polarity": "higher is better" if card.higher_is_better else "lower is better"}
    facts |= {"looks at": card.looks_at, "weights": card.weights, "memory": card.memory, **_limits(card)}
    facts |= {"licence": card.licence, "source": card.source}
    is_known = card.spread is not None or card.spread_source != RewardCard.spread_source
    facts["spread"] = card.spread_source if is_known else "not measured"
    return f"## `{card.name}`\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _limits(card: RewardCard) -> dict[str, str]:
    """What the score does not see and what it favours, as far as known, and what the doctor asks therefore."""
    from fk_reward.rewards.base import ASPECTS

    facts = {"known biases": "; ".join(card.biases) or "none with a source"}
    if card.safety is not None:
        facts |= {"as a judge of safety": _as_judge(card.safety)}
    if not card.blind_to:
        return facts | {"probes of the doctor": "all"}
    blind = "; ".join(ASPECTS[aspect] for aspect in card.blind_to)
    left_out = [probe for aspect in card.blind_to for probe in UNASKED[aspect]]
    return {"need not depend on": blind} | facts | {"probes of the doctor": f"all but {', '.join(left_out)}"}


def _as_judge(facts: SafetyFacts) -> str:
    """Where it draws the line, and how often it is known to be wrong."""
    counted = {"unsafe images missed": facts.missed, "false alarms": facts.false_alarms}
    known = [f"{name}: {found[0]} of {found[1]}" for name, found in counted.items() if found is not None]
    errors = f"{', '.join(known)} ({facts.source})" if known else "how often it is wrong is not stated"
    return f"safe above {facts.safe_above:g}; {errors}"


def _anchor(name: str) -> str:
    """The address that GitHub gives a heading: lower case, without punctuation but hyphens."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "-_")
