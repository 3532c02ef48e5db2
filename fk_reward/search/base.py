"""What a search is: settings (`SearchConfig`) that make, for each call, a `Population`, which says who goes on.

A search is one file: a frozen dataclass of its settings (`SearchConfig`), which makes a `Population` for each call. The
population gets rewards and answers with ancestors; it knows nothing of images, schedulers or models.

Letters of shapes: G prompts, K particles of a prompt now, K' particles of a prompt afterwards.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch

from fk_reward.smc.particle_filter import grouped_rewards, require_allowed
from fk_reward.smc.resampling import flat_indices
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

# A trajectory so long that no two fractions of it round to the same step: what a search does there, it can do anywhere.
LONG_RUN = 1000


@dataclass(frozen=True)
class Forecast:
    """Particles of one prompt in the course of a call: what denoiser, decoder and reward get, at most.

    Attributes:
        steps: in each step of the denoiser.
        scorings: at each scoring step, before any is dropped or copied.
        finished: at the end.
        extra_steps: sample steps beside those of the loop: of steps that are drawn again.
        guided: at each step whose move follows the gradient of the reward. There the predictions are decoded and scored
            once more, beside the scoring steps, and each of them has a backward pass through decoder and reward.
    """

    steps: tuple[int, ...]
    scorings: tuple[int, ...]
    finished: int
    extra_steps: int = field(default=0, repr=False)
    guided: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, num_steps: int, first: int, sizes: Mapping[int, int]) -> Forecast:
        """The forecast of a population that changes its size at scoring steps.

        Args:
            num_steps: scheduler steps.
            first: K at the beginning.
            sizes: scoring step -> K', the particles that go on from there.

        Example:
            >>> Forecast.of(5, 8, {1: 4, 3: 2})
            Forecast(steps=(8, 8, 4, 4, 2), scorings=(8, 4), finished=2)
        """
        marks = sorted(sizes)
        course = (first, *(sizes[mark] for mark in marks))
        # the denoiser of a scoring step has run before the particles are scored
        steps = tuple(course[bisect_left(marks, step)] for step in range(num_steps))
        return cls(steps, course[: len(marks)], course[-1])

    @property
    def num_scored(self) -> int:
        """Images that are decoded and scored, those of guided steps and the finished ones among them."""
        return sum(self.scorings) + sum(self.guided) + self.finished

    @property
    def resizes(self) -> bool:
        """Whether the number of particles changes in the course of the call."""
        return len({*self.steps, *self.scorings, self.finished}) > 1


class Population(Protocol):
    """Who goes on: the particles of all prompts in one call. A new one is made for each call.

    Subclass `PlainPopulation`, which has an answer to everything, and override what differs; or write all of it.

    Plain attributes serve for the properties.
    """

    @property
    def num_groups(self) -> int:
        """G, prompts. They never exchange particles."""

    @property
    def num_particles(self) -> int:
        """K, particles of a prompt now. It may shrink and grow."""

    @property
    def max_particles(self) -> int:
        """The most particles of a prompt at any step; `steer` refuses more."""

    @property
    def copies(self) -> bool:
        """Whether an ancestor can have several descendants.

        Copies need noise of their own, so that `steer` refuses a deterministic transition; where no particle is
        copied, any scheduler will do.
        """

    @property
    def needs_scores(self) -> bool:
        """Whether the scoring steps to come are of use; False ends the scoring until the images are finished."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about this run that its user should know; they stand in the trace."""

    def begin(self, num_steps: int) -> str | None:
        """Prepare for a run of so many steps; a sentence for the user where the settings come to nothing."""

    def scoring_steps(self, num_steps: int) -> Sequence[int]:
        """Ascending 0-based indices of the scheduler steps before which the particles are scored."""

    def forecast(self, num_steps: int) -> Forecast:
        """Sizes, scorings and guided steps of a complete run, for planning and batching."""

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """Decide who goes on.

        Args:
            rewards: `(G * K,)`, prompt-major, of the predicted clean samples; finite or `-inf`.
            step: index of the scheduler step that is about to be made.
            log_ratio: `(G * K,)` float64, log of target over proposal density of the moves since the last call, for
                searches with weights; None where the scheduler's own moves were made.

        Returns:
            `(G * K',)` int64, flat indices of the ancestors, prompt-major: the i-th particle of prompt g goes on from
            `ancestors[g * K' + i]`, which is one of the same prompt. None where all stay in place.
        """

    def finish(self, rewards: Tensor, *, step: int | None = None, log_ratio: Tensor | None = None) -> str | None:
        """Take the rewards `(G * K,)` of the finished images; `-inf` forbids one.

        Returns:
            A sentence to warn the user with where the search turned out to do nothing, else None.
        """

    def select(self, num_selected: int) -> Tensor:
        """`(G, n)` int64, indices within each prompt of the images to return, best first."""

    def record(self) -> Mapping[str, Tensor]:
        """What the trace keeps of the last `advance` or `finish`, by name.

        `log_weights` `(G, K)` and `ess` `(G,)`, before particles were dropped or copied; after `finish` also
        `log_evidence` and `reward_scale`, `(G,)`; all float64. What is missing is that of equal weights.
        """


@runtime_checkable
class ReadsSignal(Protocol):
    """What a `Population` has besides, if it wants to know how much signal the samples hold that it is scored by."""

    @property
    def reads_signal(self) -> bool:
        """Whether it wants to know in this run; `steer` then refuses schedulers whose noise levels are not known."""

    def at_signal(self, share: float) -> None:
        """Take the share of a scoring step, alpha² / (alpha² + sigma²); called before its `advance`."""


@runtime_checkable
class ReadsSpread(Protocol):
    """What a config has besides, if settings of it are to be chosen by the reward of the call."""

    def for_spread(self, spread: float | None) -> SearchConfig:
        """The config with numbers in place of `"card"`; called before anything is drawn.

        Args:
            spread: standard deviation of the reward within a prompt, as its card states it; None where not known.

        Raises:
            ValueError: where the spread is needed and not known.
        """


@runtime_checkable
class SearchConfig(Protocol):
    """Settings of a search: a frozen dataclass that validates its fields and documents each of them.

    Attributes:
        default_eta: `eta` of a scheduler that takes one, where the caller gives none; None for the pipeline's own.
            A search that copies needs noise, and so 1.0.
    """

    default_eta: ClassVar[float | None]

    @property
    def num_particles(self) -> int:
        """K, particles of a prompt at the beginning."""

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> Population:
        """The population of one call.

        Args:
            num_groups: G, prompts.
            generators: source of the search's own randomness, on the CPU: one, or one for each prompt.
            spread: standard deviation of the reward within a prompt, as its card states it; None where not known.
        """


@runtime_checkable
class ChosenByCall(Protocol):
    """A search that is another one for each kind of call, such as `Recommended`.

    Its `num_particles` may be None, for what the chosen search has. A method `explain` with the arguments of `for_call`
    may return a sentence that says what is chosen and why: it ends the errors of settings that do not fit.
    """

    def for_call(self, num_images: int, scheduler: Any = None) -> SearchConfig:
        """The search of a call that returns so many images of a prompt.

        Args:
            num_images: of a prompt.
            scheduler: that makes the steps; None where it is not known.
        """


def for_one_image(config: SearchConfig) -> SearchConfig:
    """The search itself, or what it chooses for a call that returns one image by a scheduler that is not known.

    Example:
        >>> from fk_reward.search import BestOfN, Recommended
        >>> type(for_one_image(BestOfN())).__name__, type(for_one_image(Recommended())).__name__
        ('BestOfN', 'Pruning')
    """
    return config.for_call(1) if isinstance(config, ChosenByCall) else config


class PlainPopulation:
    """Particles without weights: none is scored on the way, none moves, the best finished ones are selected.

    The base of searches that rank. Override `scoring_steps`, `sizes` and `advance`.

    Args:
        num_particles: K at the beginning.
        num_groups: G.
        max_particles: the most particles of a prompt at any step; K when missing.
        abstain: whether a prompt of which every finished image is forbidden returns black images; False raises.

    Example:
        >>> population = PlainPopulation(3)
        >>> population.finish(torch.tensor([0.1, 0.7, 0.2]))
        >>> population.select(2)
        tensor([[1, 2]])
    """

    copies: bool = False
    needs_scores: bool = True

    def __init__(
        self, num_particles: int, num_groups: int = 1, *, max_particles: int | None = None, abstain: bool = False
    ) -> None:
        self.num_groups = whole_number("num_groups", num_groups, minimum=1)
        self.num_particles = num_particles
        self.max_particles = num_particles if max_particles is None else max_particles
        self.first_particles = num_particles  # as `num_particles` changes on the way
        self._abstain = abstain
        self._sizes: Mapping[int, int] = {}
        self._final: Tensor | None = None
        self._notes: list[str] = []

    @property
    def notes(self) -> Sequence[str]:
        """What was repeated or forbidden at the end."""
        return self._notes

    def begin(self, num_steps: int) -> str | None:
        """Place the scoring steps."""
        self._sizes = self.sizes(num_steps)
        return None

    def sizes(self, num_steps: int) -> Mapping[int, int]:  # noqa: ARG002 (for those that override it)
        """Scoring step -> K', the particles of a prompt that go on from there; nothing for a search without."""
        return {}

    def scoring_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of `sizes`."""
        return tuple(sorted(self.sizes(num_steps)))

    def forecast(self, num_steps: int) -> Forecast:
        """By `sizes`."""
        return Forecast.of(num_steps, self.first_particles, self.sizes(num_steps))

    def size_after(self, step: int) -> int:
        """K' of the last scoring step that is due at this step; several can be where one had to wait for noise."""
        due = [mark for mark in sorted(self._sizes) if mark <= step]
        return self._sizes[due[-1]] if due else self.num_particles

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """No particle moves."""
        self.grouped(rewards, step=step)
        self.refuse_ratio(log_ratio)
        return None

    def refuse_ratio(self, log_ratio: Tensor | None) -> None:
        """Raise for moves that need weights to be corrected by.

        Raises:
            ValueError: where there is a log-ratio.
        """
        if log_ratio is not None:
            raise ValueError(
                f"{type(self).__name__} has no weights, so that a transition with a log-ratio cannot be corrected: use "
                "a search with weights, such as FKSteeringConfig."
            )

    def grouped(self, rewards: Tensor, *, step: int | None = None) -> Tensor:
        """Rewards `(G * K,)` as `(G, K)` float64 on the CPU.

        Raises:
            ValueError: for another shape, and for NaN or `+inf`, by prompt, particle and step.
        """
        return grouped_rewards(rewards, self.num_groups, self.num_particles, step=step)

    @staticmethod
    def best(grouped: Tensor, number: int) -> Tensor:
        """`(G, number)` int64, the places of the highest rewards of each row, ascending; of equal ones the first."""
        return grouped.argsort(dim=1, descending=True, stable=True)[:, :number].sort(dim=1).values

    def moved(self, ancestors: Tensor) -> Tensor:
        """Flat ancestors `(G * K',)` of indices within each prompt `(G, K')`; the population has this size now."""
        flat = flat_indices(ancestors, self.num_particles)
        self.num_particles = ancestors.shape[1]
        return flat

    def finish(self, rewards: Tensor, *, step: int | None = None, log_ratio: Tensor | None = None) -> None:
        """Keep the rewards for `select`.

        Raises:
            ValueError: where all of a prompt are `-inf`, unless `abstain`.
        """
        self._final = self.grouped(rewards, step=step)
        self.refuse_ratio(log_ratio)
        forbidden = require_allowed(self._final, abstain=self._abstain)
        if forbidden is not None:
            self._notes.append(forbidden)

    def select(self, num_selected: int) -> Tensor:
        """`(G, n)`, in the order of `order`. Where fewer are allowed, those repeat."""
        if self._final is None:
            raise RuntimeError("select() needs the final rewards: call finish(rewards) first.")
        if not 1 <= num_selected <= self.num_particles:
            raise ValueError(f"num_selected should be in [1, {self.num_particles}], got {num_selected}.")
        best_first = self.order(self._final)
        num_allowed = (self._final > -torch.inf).sum(1)
        for group, number in enumerate(num_allowed.tolist()):
            if 0 < number < num_selected:
                self._notes.append(
                    f"Of the {self.num_particles} finished images of prompt {group}, {number} are allowed (the others "
                    "have a reward of -inf), so that images repeat."
                )
        num_allowed = num_allowed.where(num_allowed > 0, self.num_particles)
        return best_first.gather(1, (torch.arange(num_selected) % num_allowed[:, None]).sort(dim=1).values)

    def order(self, rewards: Tensor) -> Tensor:
        """`(G, K)`, the order in which images are returned, by their rewards `(G, K)`; forbidden ones (-inf) last."""
        return rewards.argsort(dim=1, descending=True, stable=True)

    def record(self) -> Mapping[str, Tensor]:
        """Nothing: there are no weights."""
        return {}


def step_at(fraction: float, num_steps: int) -> int:
    """The step that is nearest to a fraction of the trajectory; `num_steps`, which is none, for 1.

    Example:
        >>> step_at(0.45, 20), step_at(0.5, 5), step_at(1.0, 20)
        (9, 3, 20)
    """
    return math.floor(fraction * num_steps + 0.5)


def forecast(config: SearchConfig, num_steps: int) -> Forecast:
    """Particles of one prompt in a call with this search.

    Args:
        config: of the search.
        num_steps: scheduler steps, one call of the denoiser each.

    Example:
        >>> from fk_reward.search import FKSteeringConfig
        >>> forecast(FKSteeringConfig(num_particles=8, final_particles=2, num_resamples=2), 5)
        Forecast(steps=(8, 8, 8, 4, 2), scorings=(8, 4), finished=2)
    """
    return config.population(1).forecast(num_steps)


def scores_predictions(population: Population) -> bool:
    """Whether the reward is asked on the way: in a trajectory, or inside the passes of a search over starts."""
    inside = getattr(population, "inside", None)
    return can_move(population if inside is None else inside)


def can_move(population: Population) -> bool:
    """Whether particles are scored on the way, and so may be dropped or copied.

    Example:
        >>> can_move(PlainPopulation(4))
        False
    """
    return len(population.scoring_steps(LONG_RUN)) > 0


SEARCH_STARTS = "A search over the starts has something to decide: search='noise-search'."
"""What to do where a trajectory is too short for a search inside it."""


def needs_noise(config: SearchConfig) -> bool:
    """Whether a search needs a stochastic transition: it copies particles, or it says so (`needs_noise = True`).

    Example:
        >>> from fk_reward.search import BestOfN, BeamSearch
        >>> needs_noise(BestOfN()), needs_noise(BeamSearch())
        (False, True)
    """
    return bool(getattr(config, "needs_noise", False)) or config.population(1).copies


def can_resize(population: Population) -> bool:
    """Whether the number of particles changes in the course of a call.

    Example:
        >>> can_resize(PlainPopulation(4))
        False
    """
    return population.forecast(LONG_RUN).resizes


def num_finished(config: SearchConfig) -> int:
    """Particles of a prompt that are finished, at the end of a call with this search.

    Example:
        >>> from fk_reward.search import FKSteeringConfig
        >>> num_finished(FKSteeringConfig(num_particles=8, final_particles=2))
        2
    """
    return forecast(config, LONG_RUN).finished
