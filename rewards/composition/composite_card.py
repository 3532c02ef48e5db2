"""The card of a composition, from the cards of its parts."""

from __future__ import annotations

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.composition.expression import Cards, Expression


def composite_card(expression: Expression, cards: Cards) -> RewardCard:
    """Derive a card; no weights are needed.

    The range is that of interval arithmetic. The spread is known where one part or standard score is merely scaled and
    shifted; of a sum of several it depends on how they vary together, and is None. Differentiable means that all parts
    are. Texts that are the same for all parts stand once.

    Args:
        expression: the composition.
        cards: cards of its parts, by name.

    Raises:
        ValueError: without any part, or where some parts want the value up and others down.

    Example:
        >>> from fk_reward.rewards.composition.expression import Part, weighted_sum
        >>> cards = {"a": RewardCard(name="a", summary="...", typical_range=(0, 1), spread=0.1, licence="MIT")}
        >>> card = composite_card(weighted_sum([(-2.0, Part("a"))]), cards)
        >>> card.name, card.typical_range, card.spread, card.licence
        ('-2*a', (-2.0, 0.0), 0.2, 'MIT')
    """
    if not expression.names:
        raise ValueError(f"A composition needs at least one reward, got only {expression}.")
    used = {name: cards[name] for name in expression.names}
    low, high = expression.typical_range(used)
    limits = [card.max_prompt_tokens for card in used.values() if card.max_prompt_tokens is not None]
    return RewardCard(
        name=str(expression),
        summary="composition of " + ", ".join(used),
        higher_is_better=_higher_is_better(expression, used),
        typical_range=(low, high) if low < high else RewardCard.typical_range,
        spread=expression.spread(used) or None,
        differentiable=all(card.differentiable for card in used.values()),
        max_prompt_tokens=min(limits, default=None),
        **{field: _joined(used, field) for field in ("licence", "source", "weights", "memory")},
    )


def _higher_is_better(expression: Expression, cards: Cards) -> bool:
    """Whether the value should go up: a part that enters with a plus decides, one with a minus was written so."""
    raised = dict.fromkeys(name for name, sign in expression.signed_parts() if sign > 0)
    up = [name for name in raised if cards[name].higher_is_better]
    down = [name for name in raised if not cards[name].higher_is_better]
    if up and down:
        raise ValueError(
            f"Of {', '.join(down)} lower is better, of {', '.join(up)} higher: {expression} rewards both. "
            f"Write a minus before {down[0]}."
        )
    return not down


def _joined(cards: Cards, field: str) -> str:
    texts = {name: getattr(card, field) for name, card in cards.items()}
    distinct = set(texts.values())
    return distinct.pop() if len(distinct) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())
