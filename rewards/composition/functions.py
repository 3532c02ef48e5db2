"""Compositions of reward objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from numbers import Real

from fk_reward.rewards.base import Reward
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.composition.construction import make_extreme, make_gate, make_number, make_standardized
from fk_reward.rewards.composition.expression import Expression, Part, weighted_sum


def minimum(*rewards: Reward | float) -> CompositeReward:
    """The smallest of several scores of an image: good only if all are.

    Args:
        *rewards: at least two rewards or numbers, in one unit (`standardize` brings them there).

    Raises:
        TypeError: for something that is neither.
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
        TypeError: for something that is neither.
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
        TypeError: for something that is neither reward nor number.
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
