"""A composition of rewards as a reward: each part is scored once, parts on one backbone in one pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from fk_reward.rewards.base import ASPECTS, Reward, RewardCard
from fk_reward.rewards.composition.expression import (
    Cards,
    Expression,
    Part,
    make_extreme,
    make_gate,
    make_number,
    make_standardized,
    weighted_sum,
)
from fk_reward.rewards.inputs import Images, copied, in_order, prompt_list

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self


class CompositeReward(Reward):
    """A weighted sum, minimum, gate, ... of rewards; made by `load_reward("0.7*a + 0.3*b")` or `0.7 * a + 0.3 * b`.

    Parts see all images of a call, so that a general preference compares the same images as it does alone. A part that
    forbids an image, by `-inf`, forbids it for a sum, too, unless its weight is 0.

    Args:
        expression: what is computed from the scores of the parts.
        parts: a reward for each name in the expression.

    Attributes:
        expression: as given; `str` of it is the name on the card.
        parts: as given, in the order of the expression.

    Raises:
        ValueError: when no part is named, or parts of which lower is better mix with others.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> red, blue = (CallableReward(lambda x, _, c=c: x[:, c].mean(dim=(1, 2)), f"channel-{c}") for c in (0, 2))
        >>> reward = 0.75 * red - blue
        >>> reward.card.name
        '0.75*channel-0 - channel-2'
        >>> reward(torch.ones(2, 3, 4, 4), "a cat")
        tensor([-0.2500, -0.2500])
    """

    def __init__(self, expression: Expression, parts: Mapping[str, Reward]) -> None:
        self.expression = expression
        self.parts = {name: parts[name] for name in expression.names}
        self._cards = {name: part.card for name, part in self.parts.items()}
        self.card = composite_card(expression, self._cards)

    @property
    def batch_size(self) -> int | None:  # type: ignore[override]
        """Number of images that a part sees at once, None where parts differ; setting it sets that of all parts."""
        sizes = {part.batch_size for part in self.parts.values()}
        return sizes.pop() if len(sizes) == 1 else None

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        for part in self.parts.values():
            part.batch_size = value

    @contextmanager
    def limited_to(self, batch_size: int) -> Iterator[None]:
        """Limit each part."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.limited_to(batch_size))
            yield

    def for_previews(self) -> CompositeReward:
        """The same composition of what its parts answer; itself where none of them answers with another reward."""
        return self._of({name: part.for_previews() for name, part in self.parts.items()})

    def at_noise(self, level: float) -> CompositeReward:
        """The same composition of what its parts answer; itself where none of them answers with another reward."""
        return self._of({name: part.at_noise(level) for name, part in self.parts.items()})

    def _of(self, parts: Mapping[str, Reward]) -> CompositeReward:
        if all(parts[name] is part for name, part in self.parts.items()):
            return self
        self._check_unchanged()  # the new one would take what has become of a part for what was composed
        return CompositeReward(self.expression, parts)

    @property
    def judges(self) -> tuple[str, ...]:
        """Those of all parts, each once."""
        return tuple(dict.fromkeys(judge for part in self.parts.values() for judge in part.judges))

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Those of all parts."""
        return tuple(name for part in self.parts.values() for name in part.uncalibrated)

    @property
    def compares_images(self) -> bool:
        """Whether one of the parts does."""
        return any(part.compares_images for part in self.parts.values())

    @property
    def device(self) -> torch.device | None:
        """Device of the first part that has weights; None if none has."""
        return next((part.device for part in self.parts.values() if part.device is not None), None)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts, in place; return the reward itself."""
        for part in self.parts.values():
            part.to(device, dtype)
        return self

    def modules_to_compile(self) -> list[nn.Module]:
        """Those of all parts."""
        return [module for part in self.parts.values() for module in part.modules_to_compile()]

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images as `Reward.__call__` does."""
        return self.score_with_parts(images, prompts)[0]

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Do the same as a call."""
        return self(images, prompts)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Score images, and return the scores of the parts, too.

        Args:
            images: as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            (B,) float32, and for each part (B,) float32.

        Raises:
            NonFiniteScoreError: for a part's score or a combination that is NaN or `+inf` (a negative weight makes it
                of `-inf`), or that is too large for float32.
            ValueError: when a part was switched to something else since it was composed.
        """
        images = in_order(images, keep_uint8=True)  # each part asks for the form that it takes
        texts = prompt_list(prompts, len(images))
        self._check_unchanged()
        parts = self._score_parts(images, texts)
        scores = self.expression.evaluate(parts)
        # Only a part may forbid an image: an -inf that the arithmetic makes is an error.
        forbidden = torch.stack([part.isneginf() for part in parts.values()]).any(0)
        self._check_scores(scores, tuple(range(len(texts))), texts, forbidden=forbidden)
        return scores, parts

    def _score_parts(self, images: Tensor | list[Tensor], prompts: list[str]) -> dict[str, Tensor]:
        """Score each part once, those with equal `shared_pass` together."""
        passes: dict[Hashable, list[str]] = {}
        for name, part in self.parts.items():
            # A part that shares no pass gets its own key, its name; a tuple around the others keeps the two apart.
            passes.setdefault(name if part.shared_pass is None else (part.shared_pass,), []).append(name)
        scores: dict[str, Tensor] = {}
        for names in passes.values():
            first, *others = (self.parts[name] for name in names)
            own = copied(images)  # a part that overrides `__call__` may write to its input
            together = first.score_together(others, own, prompts) if others else [first(own, prompts)]
            scores.update(zip(names, together, strict=True))
        return {name: scores[name] for name in self.parts}

    def _check_unchanged(self) -> None:
        for name, part in self.parts.items():
            if part.card != self._cards[name]:
                raise ValueError(
                    f"{name} has become {part.card.name} since {self.card.name} was composed; load a reward for each."
                )


def composite_card(expression: Expression, cards: Cards) -> RewardCard:
    """Derive a card; no weights are needed.

    The range is that of interval arithmetic. The spread is known where one part or standard score is merely scaled and
    shifted; of a sum of several it depends on how they vary together, and is None. Differentiable means that all parts
    are. Texts that are the same for all parts appear once.

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
    fields = ("spread_source", "looks_at", "licence", "source", "weights", "memory")
    texts: dict[str, Any] = {field: _joined(used, field) for field in fields}
    limits = [card.max_prompt_tokens for card in used.values() if card.max_prompt_tokens is not None]
    return RewardCard(
        name=str(expression),
        summary="composition of " + ", ".join(used),
        higher_is_better=_higher_is_better(expression, used),
        typical_range=(low, high) if low < high else RewardCard.typical_range,
        spread=expression.spread(used) or None,
        differentiable=all(card.differentiable for card in used.values()),
        max_prompt_tokens=min(limits, default=None),
        blind_to=tuple(name for name in ASPECTS if all(name in card.blind_to for card in used.values())),
        biases=tuple(dict.fromkeys(f"{name}: {bias}" for name, card in used.items() for bias in card.biases)),
        **texts,
    )


def _higher_is_better(expression: Expression, cards: Cards) -> bool:
    """Whether the value should go up: a part that enters with a plus decides, one with a minus was written so."""
    raised = dict.fromkeys(name for name, sign in expression.signed_parts() if sign > 0)
    up = [name for name in raised if cards[name].higher_is_better]
    down = [name for name in raised if not cards[name].higher_is_better]
    if up and down:
        raise ValueError(
            f"Lower is better for {', '.join(down)}, higher for {', '.join(up)}, but {expression} raises both. "
            f"Write a minus before {down[0]}."
        )
    return not down


def _joined(cards: Cards, field: str) -> str:
    texts = {name: getattr(card, field) for name, card in cards.items()}
    distinct = set(texts.values())
    return distinct.pop() if len(distinct) == 1 else "; ".join(f"{name}: {text}" for name, text in texts.items())


def minimum(*rewards: Reward | float) -> CompositeReward:
    """The smallest of several scores of an image: good only if all are.

    Args:
        *rewards: at least two rewards or numbers, in one unit (`standardize` brings them there).

    Raises:
        TypeError: for other operands.
        ValueError: for fewer than two.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> minimum(load_reward("shapes-verifier"), 0.5).card.name
        'min(shapes-verifier, 0.5)'
    """
    operands, parts = _merged(rewards)
    return CompositeReward(make_extreme("min", operands), parts)


def maximum(*rewards: Reward | float) -> CompositeReward:
    """The largest of several scores of an image.

    Args:
        *rewards: at least two rewards or numbers, in one unit (`standardize` brings them there).

    Raises:
        TypeError: for other operands.
        ValueError: for fewer than two.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> maximum(load_reward("shapes-verifier"), 0.5).card.name
        'max(shapes-verifier, 0.5)'
    """
    operands, parts = _merged(rewards)
    return CompositeReward(make_extreme("max", operands), parts)


def standardize(reward: Reward, *, mean: float | None = None, spread: float | None = None) -> CompositeReward:
    """(score - mean) / spread: in this unit, rewards of different scales can be added and compared.

    Args:
        reward: any reward.
        mean: in the unit of the reward; None for the middle of the typical range on its card.
        spread: standard deviation in the unit of the reward; None for that on its card.

    Raises:
        ValueError: when one of them is not given, and the card does not know it either.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> standardize(load_reward("shapes-verifier"), spread=0.25).card.name
        'z(shapes-verifier, mean=0.5, spread=0.25)'
    """
    (operand,), parts = _merged([reward])
    cards = {name: part.card for name, part in parts.items()}
    return CompositeReward(make_standardized(operand, cards, mean=mean, spread=spread), parts)


def gate(
    reward: Reward | float,
    check: Reward,
    *,
    above: float | None = None,
    below: float | None = None,
    otherwise: Reward | float | None = None,
) -> CompositeReward:
    """A reward where another one passes a threshold, something else elsewhere.

    Args:
        reward: the score of an image that passes.
        check: the reward that decides.
        above: an image passes if `check` is greater than this.
        below: an image passes if `check` is less than this; give exactly one of the two.
        otherwise: the score of an image that fails; None for the low end of the typical range of `reward`, which is
            logged. It is finite, so that there are weights even where every particle fails.

    Raises:
        TypeError: for other operands.
        ValueError: without exactly one threshold, or when `otherwise` is not given and the range is not known.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> gate(load_reward("shapes-clipscore"), load_reward("shapes-verifier"), above=0.5, otherwise=-1).card.name
        'shapes-clipscore if shapes-verifier > 0.5 else -1'
    """
    if (above is None) == (below is None):
        raise ValueError(f"gate needs exactly one of above and below, got above={above}, below={below}.")
    (passed, left, *failed), parts = _merged([reward, check, *([] if otherwise is None else [otherwise])])
    cards = {name: part.card for name, part in parts.items()}
    condition = (left, ">", make_number(above)) if above is not None else (left, "<", make_number(below))  # type: ignore[arg-type]
    return CompositeReward(make_gate(passed, condition, cards, failed=failed[0] if failed else None), parts)


def add_weighted(terms: Sequence[tuple[float, Reward | float]]) -> CompositeReward:
    """Weighted sum of rewards and numbers, what the operators of rewards make.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> add_weighted([(2.0, load_reward("shapes-verifier")), (-1.0, 0.5)]).card.name
        '2*shapes-verifier - 0.5'
    """
    operands, parts = _merged([term for _, term in terms])
    weights = [float(weight) for weight, _ in terms]
    return CompositeReward(weighted_sum(zip(weights, operands, strict=True)), parts)


def _merged(operands: Sequence[Reward | float]) -> tuple[list[Expression], dict[str, Reward]]:
    """Each operand as an expression over one set of parts; of two rewards with one name, one is renamed."""
    expressions: list[Expression] = []
    parts: dict[str, Reward] = {}
    for operand in operands:
        if isinstance(operand, CompositeReward):
            names = {name: _place(parts, name, part) for name, part in operand.parts.items()}
            expressions.append(operand.expression.renamed(names))
        elif isinstance(operand, Reward):
            expressions.append(Part(_place(parts, operand.card.name, operand)))
        elif isinstance(operand, Real):
            expressions.append(make_number(float(operand)))
        else:
            raise TypeError(f"Expected rewards and numbers, got {type(operand).__name__}; load_reward makes a reward.")
    return expressions, parts


def _place(parts: dict[str, Reward], name: str, reward: Reward) -> str:
    """Put a reward among the parts, once, under its name or the next free one; return that."""
    held = next((key for key, part in parts.items() if part is reward), None)
    if held is not None:
        return held
    own_name = name.partition("#")[0]
    free = next(key for key in _numbered(own_name) if key not in parts)
    parts[free] = reward
    return free


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}#{number}" for number in count(2))


# Rewards add up to a reward that is defined here, so that base.py cannot import it.
Reward._add_weighted = staticmethod(add_weighted)
