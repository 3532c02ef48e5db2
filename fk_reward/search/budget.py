"""Budgets: how many sample steps a search costs, and the sizes that a given number of them pays for.

A sample step is one sample through one step of the scheduler, guidance or not. It is what searches are compared by, and
`trace.cost.sample_steps` counts it.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

from fk_reward.search.base import Population, SearchConfig
from fk_reward.search.starts import Passes
from fk_reward.value_checks import whole_number


def _as_many(num_inference_steps: int) -> int:
    return num_inference_steps


@runtime_checkable
class Budgeted(Protocol):
    """A search that says itself what a budget buys; its class names the fields that this sets as `set_by_budget`.

    Of any other the number of particles is set, and in proportion to it those fields that its class names as
    `proportional`: numbers of particles, or tuples of them.
    """

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """The largest sizes that a budget pays for.

        Args:
            price: sample steps of a prompt that a config costs, at most.
            budget: sample steps of a prompt.

        Returns:
            None where nothing is to be had for it.
        """


def sample_steps(
    config: SearchConfig, num_steps: int, *, length: Callable[[int], int] = _as_many, lookahead: int | str = 1
) -> int:
    """Sample steps of one prompt in a call with this search: at most, where it may end early.

    Args:
        config: of the search.
        num_steps: `num_inference_steps` of the call.
        length: from a number of inference steps to the steps that the scheduler makes: some make two of each.
        lookahead: as of `FKSteeringPipeline`; each of its steps but the first is a sample step, and so is an adapter's.

    Example:
        >>> from fk_reward.search import BestOfN, DraftRefine, Pruning
        >>> sample_steps(BestOfN(num_particles=4), 20), sample_steps(DraftRefine(), 20)
        (80, 80)
        >>> sample_steps(DraftRefine(), 20, length=lambda num_steps: 2 * num_steps - 1)
        150
        >>> pruning = Pruning(num_particles=4, keep=(2,), at=(0.5,))
        >>> sample_steps(pruning, 20), sample_steps(pruning, 20, lookahead=3)
        (62, 70)
    """
    population = config.population(1)
    if isinstance(population, Passes):
        passes = [(size, length(num_inference_steps)) for size, num_inference_steps in population.passes(num_steps)]
        inside = population.inside
        ahead = 0 if inside is None else sum(_ahead(inside, last, lookahead) for _, last in passes)
        return sum(size * last for size, last in passes) + ahead
    last = length(num_steps)
    expected = population.forecast(last)
    return sum(expected.steps) + expected.extra_steps + _ahead(population, last, lookahead)


def _ahead(population: Population, last: int, lookahead: int | str) -> int:
    """Sample steps of the look-ahead alone, in a trajectory of so many scheduler steps."""
    expected = population.forecast(last)
    if expected.extra_steps:  # each draw is scored, those that are drawn again among them
        return sum(expected.scorings) * (1 if isinstance(lookahead, str) else lookahead - 1)
    return sum(
        size * (1 if isinstance(lookahead, str) else min(lookahead, last - step) - 1)
        for step, size in zip(population.scoring_steps(last), expected.scorings, strict=False)
    )


def fit_budget(
    config: SearchConfig,
    budget: int,
    num_steps: int,
    *,
    length: Callable[[int], int] = _as_many,
    lookahead: int | str = 1,
) -> SearchConfig:
    """The search with the largest sizes that cost at most so many sample steps a prompt.

    Other sizes keep their proportion to the number of particles: `Pruning.keep`, `DraftRefine.num_refined`,
    `FKSteeringConfig.final_particles`.

    Args:
        config: of the search.
        budget: sample steps of a prompt.
        num_steps: `num_inference_steps` of the call.
        length: as of `sample_steps`.
        lookahead: as of `sample_steps`.

    Raises:
        ValueError: for a budget that buys nothing.

    Example:
        >>> from fk_reward.search import BestOfN, Pruning
        >>> fit_budget(BestOfN(), 200, 20).num_particles
        10
        >>> fit_budget(BestOfN(), 19, 20)
        Traceback (most recent call last):
        ValueError: budget=19 sample steps a prompt buys nothing: BestOfN needs at least 20, with 20 inference ...
        >>> pruning = fit_budget(Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55)), 320, 20)
        >>> pruning.num_particles, pruning.keep, sample_steps(pruning, 20)
        (23, (13, 8), 310)
    """
    budget = whole_number("budget", budget, minimum=1)

    def price(one: SearchConfig) -> int:
        return sample_steps(one, num_steps, length=length, lookahead=lookahead)

    fitted = _fitted(config, price, budget)
    if fitted is None:
        needs = _smallest_budget(config, price, budget)
        costs = f"{type(config).__name__} needs at least {needs}" if needs else f"no size of {config} can be had"
        raise ValueError(
            f"budget={budget} sample steps a prompt buys nothing: {costs}, with {num_steps} inference steps. Raise the "
            "budget, or take fewer steps."
        )
    return fitted


def _fitted(config: SearchConfig, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
    if isinstance(config, Budgeted):
        fitted = config.within_budget(price, budget)
    else:
        fitted = largest_within(functools.partial(resized, config), price, budget)
    return None if fitted is None or price(fitted) > budget else fitted


def _smallest_budget(config: SearchConfig, price: Callable[[SearchConfig], int], budget: int) -> int | None:
    """The smallest budget that buys something, above one that buys nothing."""
    high = next((budget << power for power in range(1, 24) if _fitted(config, price, budget << power)), None)
    if high is None:
        return None
    return (
        budget + 1 + bisect_left(range(budget + 1, high), True, key=lambda one: _fitted(config, price, one) is not None)
    )


def largest_within(
    make: Callable[[int], SearchConfig], price: Callable[[SearchConfig], int], budget: int
) -> SearchConfig | None:
    """The config of the largest size that costs no more than the budget; None where the smallest one does.

    Args:
        make: a config of size 1, 2, ...; a larger one costs no less. ValueError for a size that is too small.
        price: sample steps of a prompt that it costs.
        budget: sample steps of a prompt.

    Example:
        >>> from fk_reward.search import BestOfN
        >>> largest_within(lambda number: BestOfN(num_particles=number), lambda one: 20 * one.num_particles, 70)
        BestOfN(num_particles=3, abstain=False, selection='best', diversity_weight=1.0)
    """

    def affordable(number: int) -> bool:
        one = _made(make, number)
        return one is None or price(one) <= budget  # a size that is too small is no reason to look at smaller ones

    high = 1
    while high <= budget and affordable(high):  # each costs a step at least
        high *= 2
    # the first size that costs too much, of those that were not tried
    number = bisect_left(range(high // 2 + 1, high), True, key=lambda size: not affordable(size)) + high // 2
    return _made(make, number) if number else None


def _made(make: Callable[[int], SearchConfig], number: int) -> SearchConfig | None:
    """None for a size that this search does not have, such as a single particle where some must be dropped."""
    try:
        return make(number)
    except ValueError:
        return None


def resized(config: SearchConfig, num_particles: int) -> SearchConfig:
    """The same search with another number of particles, and what its class names as `proportional` with it.

    Raises:
        ValueError: for a number that the search does not take.

    Example:
        >>> from fk_reward.search import Pruning
        >>> resized(Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55)), 6).keep
        (4, 2)
    """
    made: Any = config
    sizes = {name: getattr(config, name) for name in getattr(config, "proportional", ())}
    share = Fraction(num_particles, config.num_particles)
    return replace(made, num_particles=num_particles, **{name: scaled(size, share) for name, size in sizes.items()})


def scaled(size: Any, share: Fraction) -> Any:
    """A share of a number of particles, or of each of several, rounded and at least 1; None stays None."""
    if isinstance(size, tuple | list):
        return tuple(scaled(one, share) for one in size)
    return None if size is None else max(1, math.floor(size * share + Fraction(1, 2)))


def check_typed_sizes(config: SearchConfig, typed: Mapping[str, Any], *, budget: str) -> None:
    """Refuse a budget beside the one number that it sets; of several sizes, those that are given are proportions.

    Args:
        config: of the search.
        typed: its fields that were given, by name.
        budget: the budget as it was typed, for the message.

    Raises:
        ValueError: for both at once.

    Example:
        >>> from fk_reward.search import BestOfN
        >>> check_typed_sizes(BestOfN(), {"num_particles": 4}, budget="budget=200")
        Traceback (most recent call last):
        ValueError: budget=200 says what num_particles BestOfN has, and num_particles=4 says it, too: leave one of ...
    """
    if getattr(config, "proportional", ()):
        return
    for name in getattr(config, "set_by_budget", ("num_particles",)):
        if name in typed:
            raise ValueError(
                f"{budget} says what {name} {type(config).__name__} has, and {name}={typed[name]} says it, too: leave "
                "one of them out."
            )
