"""What a search has to answer: each answer of a population is checked where it is used, by the name of its class.

Searches are written by users, and a wrong index or size would move other particles than were chosen, silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fk_reward.search.base import LONG_RUN, Forecast, Population, ReadsSpread, SearchConfig
from fk_reward.search.starts import Passes, StartSearch
from fk_reward.text import did_you_mean
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

_ATTRIBUTES = ("num_groups", "num_particles", "max_particles", "copies", "needs_scores", "notes")
_METHODS = ("begin", "scoring_steps", "forecast", "advance", "finish", "select", "record")


def config_for_spread(config: SearchConfig, spread: float | None) -> SearchConfig:
    """The config with numbers in place of what it takes from the reward's card.

    Raises:
        ValueError: where the spread is needed and not known.

    Example:
        >>> from fk_reward.search import SVDD
        >>> config_for_spread(SVDD(), 0.1).reward_scale
        15.0
    """
    return config.for_spread(spread) if isinstance(config, ReadsSpread) else config


def make_population(
    config: SearchConfig,
    num_groups: int = 1,
    generators: Generator | Sequence[Generator] | None = None,
    *,
    spread: float | None = None,
) -> Population:
    """The population of a config for one call, checked.

    Args:
        config: of the search.
        num_groups: G, prompts.
        generators: as `SearchConfig.population` takes them.
        spread: standard deviation of the reward within a prompt.

    Raises:
        TypeError: for what is no `Population`, and for a `StartSearch` without `Passes`.
        ValueError: for sizes that are not those of the config and of the call.

    Example:
        >>> from fk_reward.search import BestOfN
        >>> make_population(BestOfN(num_particles=8), 2).num_particles
        8
    """
    population = config.population(num_groups, generators, spread=spread)
    check_population(population)
    name, made_by = type(population).__name__, type(config).__name__
    if population.num_groups != num_groups:
        raise ValueError(f"{made_by}.population({num_groups}) made {name} of {population.num_groups} prompts.")
    if isinstance(config, StartSearch) is not isinstance(population, Passes):
        raise TypeError(
            f"{made_by}.population made {name}: a search with a method run makes Passes, any other another population."
        )
    # the particles of Passes are those of the end, which their forecast does not begin with
    first = population.forecast(LONG_RUN).steps[0] if isinstance(population, Passes) else population.num_particles
    if first != config.num_particles:
        raise ValueError(
            f"{name} begins with {first} particles of a prompt, and {made_by} says num_particles = "
            f"{config.num_particles}."
        )
    return population


def check_population(population: Any) -> None:
    """Check what can be known of a population before it runs.

    Raises:
        TypeError: where attributes or methods are missing or of another kind.
        ValueError: for sizes that contradict one another.

    Example:
        >>> check_population(object())
        Traceback (most recent call last):
        TypeError: object is no Population: it has no num_groups, num_particles, ...
    """
    name = type(population).__name__
    if missing := [attribute for attribute in (*_ATTRIBUTES, *_METHODS) if not hasattr(population, attribute)]:
        hint = " Make it of a config: FKSteeringConfig(...).population()." if name == "ParticleFilter" else ""
        raise TypeError(f"{name} is no Population: it has no {', '.join(missing)}.{hint}")
    whole_number(f"{name}.num_groups", population.num_groups, minimum=1)
    number = whole_number(f"{name}.num_particles", population.num_particles, minimum=1)
    whole_number(f"{name}.max_particles", population.max_particles, minimum=number)
    if not isinstance(population.notes, list | tuple):
        raise TypeError(f"{name}.notes should be a list of sentences, got {type(population.notes).__name__}.")
    check_scoring_steps(population, LONG_RUN)
    _check_forecast(population, LONG_RUN)


def check_scoring_steps(population: Population, num_steps: int) -> list[int]:
    """The scoring steps of a run, checked.

    Raises:
        TypeError: for anything but a sequence of ints.
        ValueError: for steps that do not ascend, or that the run does not have.

    Example:
        >>> from fk_reward.search import Pruning
        >>> check_scoring_steps(Pruning().population(), 20)
        [8, 11]
    """
    name, steps = f"{type(population).__name__}.scoring_steps({num_steps})", population.scoring_steps(num_steps)
    if not isinstance(steps, Sequence):
        raise TypeError(f"{name} should be a list of ints, got {type(steps).__name__}.")
    checked = [whole_number(f"{name}[{i}]", step, minimum=0, maximum=num_steps - 1) for i, step in enumerate(steps)]
    if any(after <= before for before, after in zip(checked, checked[1:], strict=False)):
        raise ValueError(f"{name} should ascend, got {checked}.")
    return checked


def _check_forecast(population: Population, num_steps: int) -> None:
    name, forecast = f"{type(population).__name__}.forecast({num_steps})", population.forecast(num_steps)
    if not isinstance(forecast, Forecast):
        raise TypeError(f"{name} should be a Forecast, got {type(forecast).__name__}.")
    if len(forecast.steps) != num_steps and not isinstance(population, Passes):
        raise ValueError(f"{name} should say the size at each of {num_steps} steps, got {len(forecast.steps)} sizes.")
    largest = max((*forecast.steps, *forecast.scorings, *forecast.guided, forecast.finished))
    if largest > population.max_particles:
        raise ValueError(f"{name} grows to {largest} particles, and max_particles is {population.max_particles}.")


def check_ancestors(ancestors: Tensor | None, population: Population, num_before: int) -> None:
    """Check what a population answered to `advance`.

    Args:
        ancestors: `(G * K',)` flat indices, or None where all stay.
        population: that gave them.
        num_before: K, particles of a prompt before.

    Raises:
        TypeError: for anything but a tensor of int64.
        ValueError: for another shape, more than `max_particles`, an ancestor that does not exist or is of another
            prompt, one that repeats where `copies` is False, or a `num_particles` that does not fit.

    Example:
        >>> from fk_reward.search import PlainPopulation
        >>> check_ancestors(torch.tensor([0, 4]), PlainPopulation(2), 2)
        Traceback (most recent call last):
        ValueError: PlainPopulation: particle 1 of prompt 0 should go on from one of the particles 0 to 1 of its ...
    """
    name, num_groups = type(population).__name__, population.num_groups
    num_after = num_before if ancestors is None else _check_form(ancestors, name, num_groups)
    if population.num_particles != num_after:
        raise ValueError(
            f"{name} says that a prompt has {population.num_particles} particles after this step, and its ancestors "
            f"leave {num_after}."
        )
    if num_after > population.max_particles:
        raise ValueError(
            f"{name} grows to {num_after} particles of a prompt, and its max_particles is {population.max_particles}."
        )
    if ancestors is not None:
        _check_values(ancestors.view(num_groups, -1), num_before, name, copies=population.copies)


def _check_form(ancestors: Any, name: str, num_groups: int) -> int:
    """K', particles of a prompt that go on."""
    if not isinstance(ancestors, torch.Tensor) or ancestors.dtype != torch.int64:
        got = ancestors.dtype if isinstance(ancestors, torch.Tensor) else type(ancestors).__name__
        raise TypeError(f"{name}: ancestors should be a tensor of int64, or None, got {got}.")
    if ancestors.ndim != 1 or len(ancestors) == 0 or len(ancestors) % num_groups:
        raise ValueError(
            f"{name}: ancestors should be of shape (G * K') with as many for each of {num_groups} prompts, got "
            f"{tuple(ancestors.shape)}."
        )
    return len(ancestors) // num_groups


def _check_values(grouped: Tensor, num_before: int, name: str, *, copies: bool) -> None:
    firsts = num_before * torch.arange(len(grouped))[:, None]
    outside = ((grouped < firsts) | (grouped >= firsts + num_before)).nonzero()
    if len(outside):
        group, place = outside[0].tolist()
        first = group * num_before
        raise ValueError(
            f"{name}: particle {place} of prompt {group} should go on from one of the particles {first} to "
            f"{first + num_before - 1} of its prompt, got {int(grouped[group, place])}."
        )
    repeated = (grouped.sort(dim=1).values.diff(dim=1) == 0).any(1).nonzero().flatten().tolist()
    if repeated and not copies:
        row = grouped[repeated[0]].tolist()
        raise ValueError(f"{name} copies particles of prompt {repeated[0]}, and says copies=False: ancestors {row}.")


def check_size(population: Population, *, step: int, num_steps: int) -> None:
    """Check the size after a scoring step against the forecast, which says how many there are at most.

    Raises:
        ValueError: where more particles go on than the forecast has, or fewer where it has one size throughout.
    """
    forecast = population.forecast(num_steps)
    if not forecast.resizes and population.num_particles != forecast.finished:
        # the pipeline fits its conditions, and refuses what cannot change its size, by the forecast alone
        raise ValueError(
            f"{type(population).__name__} has {population.num_particles} particles of a prompt after step {step}, and "
            f"its forecast has {forecast.finished} at all steps: override forecast (of a PlainPopulation: sizes)."
        )
    most = forecast.finished if step + 1 >= num_steps else forecast.steps[step + 1]
    if population.num_particles > most:
        raise ValueError(
            f"{type(population).__name__} has {population.num_particles} particles of a prompt after step {step}, and "
            f"its forecast has {most} at most."
        )


def selected_images(population: Population, num_selected: int) -> Tensor:
    """What a population selects, `(G, n)` int64, checked.

    Raises:
        TypeError: for anything but a tensor of int64.
        ValueError: for another shape, or an image that does not exist.

    Example:
        >>> from fk_reward.search import PlainPopulation
        >>> population = PlainPopulation(2)
        >>> population.finish(torch.tensor([0.1, 0.7]))
        >>> selected_images(population, 1)
        tensor([[1]])
    """
    selected, name = population.select(num_selected), f"{type(population).__name__}.select({num_selected})"
    if not isinstance(selected, torch.Tensor) or selected.dtype != torch.int64:
        got = selected.dtype if isinstance(selected, torch.Tensor) else type(selected).__name__
        raise TypeError(f"{name} should be a tensor of int64, got {got}.")
    expected, last = (population.num_groups, num_selected), population.num_particles - 1
    if tuple(selected.shape) != expected:
        raise ValueError(f"{name} should be of shape {expected}, got {tuple(selected.shape)}.")
    if bool(((selected < 0) | (selected > last)).any()):
        raise ValueError(f"{name} should be indices from 0 to {last}, got {selected.tolist()}.")
    return selected


def record_of(population: Population, num_particles: int) -> Mapping[str, Tensor]:
    """What a population records, checked.

    Args:
        population: after `advance` or `finish`.
        num_particles: K, of a prompt before particles were dropped or copied.

    Raises:
        TypeError: for anything but a mapping of known names to float64 tensors.
        ValueError: for another shape, or NaN.

    Example:
        >>> from fk_reward.search import FKSteeringConfig
        >>> population = FKSteeringConfig(num_particles=2).population()
        >>> population.finish(torch.zeros(2))
        >>> sorted(record_of(population, 2))
        ['ess', 'log_evidence', 'log_weights', 'reward_scale']
    """
    record, name = population.record(), f"{type(population).__name__}.record()"
    if not isinstance(record, Mapping):
        raise TypeError(f"{name} should be a mapping of names to tensors, got {type(record).__name__}.")
    groups = (population.num_groups,)
    shapes = {"log_weights": (*groups, num_particles), "ess": groups, "log_evidence": groups, "reward_scale": groups}
    for field, value in record.items():
        if field not in shapes:
            raise TypeError(f"{name}: {field!r} is not known.{did_you_mean(str(field), shapes)} Known: {[*shapes]}.")
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float64:
            got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name}: {field} should be a tensor of float64, got {got}.")
        if tuple(value.shape) != shapes[field]:
            raise ValueError(f"{name}: {field} should be of shape {shapes[field]}, got {tuple(value.shape)}.")
        if bool(value.isnan().any()):
            raise ValueError(f"{name}: {field} holds NaN.")
    return record
