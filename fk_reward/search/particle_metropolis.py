"""Particle Metropolis-Hastings: whole FK runs are proposed, and accepted by their evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from fk_reward.search.base import Forecast, SearchConfig
from fk_reward.search.budget import largest_within
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.search.metropolis import accepted
from fk_reward.search.starts import Passes, Rollout, Scored
from fk_reward.smc.potentials import RISING
from fk_reward.smc.resampling import flat_indices, systematic
from fk_reward.smc.reward_scale import AUTO, CARD, scale_of_card
from fk_reward.value_checks import boolean, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class ParticleMetropolis:
    """Run FK steering again and again; a new run takes the place of the last accepted one by their evidences.

    A run gives K weighted particles and an unbiased estimate Z of the evidence E[exp(lambda r)]. The new run is
    accepted with probability min(1, Z_new / Z_old): the particle independent Metropolis-Hastings sampler of Andrieu,
    Doucet and Holenstein (2010), section 4.2. An image that is drawn by weight from the accepted run follows
    `p(x) exp(lambda r(x))` once the chain has converged, **at any K**, where a single FK run is biased at small K. What
    is returned of a prompt is drawn so, with replacement, in random order; there is no best one.

    That needs a lambda that is the same in all runs, so that `reward_scale` is a number. Every prompt is a chain of its
    own. One run is FK steering with `selection="sample"`.

    Attributes:
        num_particles: K, particles of a run. At least 1; with 1 a run is a plain image, and Z is exp(lambda r).
        num_runs: R, runs of one prompt, the first one included. At least 1.
        reward_scale: lambda, at least 0, in 1 / unit of the reward; 0 accepts every run. `"card"` is 1.5 divided by
            the spread that the reward's card states.
        potential: as of `FKSteeringConfig`, and so are the next six.
        reward_weight: how much the rewards of a scoring step count.
        resample_start: first scoring step, as a fraction of the trajectory.
        resample_stop: last scoring step, as a fraction of the trajectory.
        num_resamples: number of scoring steps.
        ess_threshold: resample when the ESS is below this fraction of K.
        resampling: scheme that draws the ancestors.
        abstain: return black images for a prompt of which every image of every run is forbidden (a reward of -inf);
            False raises an error instead.

    Example:
        >>> forecast = ParticleMetropolis(num_particles=4, num_runs=3, num_resamples=2).population().forecast(20)
        >>> sum(forecast.steps), len(forecast.scorings), forecast.finished
        (240, 8, 4)
    """

    default_eta: ClassVar[float | None] = 1.0
    needs_noise: ClassVar[bool] = True
    set_by_budget: ClassVar[tuple[str, ...]] = ("num_runs",)

    num_particles: int = 4
    num_runs: int = 4
    reward_scale: float | str = CARD
    potential: str = "difference"
    reward_weight: Sequence[float] | str = RISING
    resample_start: float = 0.4
    resample_stop: float = 0.9
    num_resamples: int = 4
    ess_threshold: float = 1.0
    resampling: str = "systematic"
    abstain: bool = False

    def __post_init__(self) -> None:
        if self.reward_scale == AUTO:
            raise ValueError(
                f"reward_scale should be a number or 'card', got {self.reward_scale!r}: runs of different lambdas "
                "cannot be compared by their evidence."
            )
        num_runs = whole_number("num_runs", self.num_runs, minimum=1)
        boolean("abstain", self.abstain)
        checked = self.steering()
        shared = {one.name for one in fields(self)} & {one.name for one in fields(checked)} - {"abstain"}
        vars(self).update({name: getattr(checked, name) for name in shared}, num_runs=num_runs)

    def for_spread(self, spread: float | None) -> ParticleMetropolis:
        """With lambda as a number."""
        return replace(self, reward_scale=scale_of_card(self.reward_scale, spread=spread))

    def steering(self) -> FKSteeringConfig:
        """The settings of each run; a run without an allowed image is no error, but never accepted."""
        own = {one.name for one in fields(self)} & {one.name for one in fields(FKSteeringConfig)}
        settings = {name: getattr(self, name) for name in own} | {"selection": "sample", "abstain": True}
        return FKSteeringConfig(**settings)

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """As many runs of K particles as a budget pays for; where it is too little for one, one of fewer particles."""
        runs = largest_within(lambda number: replace(self, num_runs=number), price, budget)
        return runs or largest_within(lambda number: replace(self, num_particles=number, num_runs=1), price, budget)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (`run` gets them)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> Passes:
        """The images to select from, and the sizes of all runs."""
        return _Runs(self, num_groups)

    def run(self, rollout: Rollout, *, num_groups: int, generators: Sequence[Generator]) -> Scored:
        """Make the runs; what is returned is drawn by weight from the last accepted one of each prompt.

        Raises:
            RuntimeError: for a rollout that does not tell the evidence of a run.
        """
        steering, num_accepted = self.steering(), 0
        now = rollout(num_particles=self.num_particles, search=steering)
        for _ in range(self.num_runs - 1):
            proposed = rollout(num_particles=self.num_particles, search=steering, fresh_noise=True)
            taken = self.accepted(_evidence(now, num_groups), _evidence(proposed, num_groups), generators)
            num_accepted += int(taken.sum())
            now = proposed.where(taken.repeat_interleave(self.num_particles), now)
        if self.num_runs > 1:
            rollout.note(f"{num_accepted} of {(self.num_runs - 1) * num_groups} proposed runs were accepted.")
        return now.take(self.drawn(now, generators))

    def accepted(self, evidence: Tensor, proposed: Tensor, generators: Sequence[Generator]) -> Tensor:
        """Which runs take the place of the ones before.

        Args:
            evidence: `(G,)` float64, logarithms, of the runs now.
            proposed: `(G,)` float64, of the new ones; `-inf` where every image is forbidden.
            generators: one for each prompt.

        Returns:
            `(G,)` bool.

        Example:
            >>> now, new = torch.tensor([0.0, 0.0]), torch.tensor([1.0, -torch.inf])
            >>> ParticleMetropolis().accepted(now, new, [torch.Generator()] * 2)
            tensor([ True, False])
        """
        uniforms = torch.cat([torch.rand(1, dtype=torch.float64, generator=one) for one in generators])
        return accepted(evidence, proposed, uniforms, reward_scale=1.0)

    def drawn(self, runs: Scored, generators: Sequence[Generator]) -> Tensor:
        """K rows of each prompt `(G * K,)`, drawn by weight with replacement: each of them follows the target.

        The systematic scheme repeats as little as it can; it goes by the order of the particles, which is shuffled
        afterwards, since only some of them may be returned.
        """
        weights = _of_runs(runs.log_weights, runs).view(len(generators), -1)
        places = []
        for row, generator in zip(weights, generators, strict=True):
            allowed = row if bool((row > -torch.inf).any()) else torch.zeros_like(row)
            drawn = systematic(allowed, len(row), generator)
            places.append(drawn[torch.randperm(len(drawn), generator=generator)])
        return flat_indices(torch.stack(places), self.num_particles)


class _Runs(Passes):
    """The images of the last accepted run, in their order: the best of them would follow another law.

    Args:
        config: of the search.
        num_groups: G.
    """

    def __init__(self, config: ParticleMetropolis, num_groups: int) -> None:
        size, self._num_runs = config.num_particles, config.num_runs
        super().__init__(
            lambda num_steps: ((size, num_steps),) * config.num_runs, num_groups, finished=size, abstain=config.abstain
        )
        self.inside = self._steered = config.steering().population()

    def forecast(self, num_steps: int) -> Forecast:
        """Run after run, with what each scores on the way."""
        plain, one = super().forecast(num_steps), self._steered.forecast(num_steps)
        return Forecast(plain.steps, (*one.scorings * self._num_runs, *plain.scorings), plain.finished)

    def order(self, rewards: Tensor) -> Tensor:
        """Allowed ones first."""
        return (rewards == -torch.inf).long().argsort(dim=1, stable=True)


def _of_runs(values: Tensor | None, runs: Scored) -> Tensor:
    if values is None or len(values) != len(runs.rewards):
        raise RuntimeError("A pass of ParticleMetropolis needs log_weights and log_evidence of its runs: got none.")
    return values.to(torch.float64)


def _evidence(runs: Scored, num_groups: int) -> Tensor:
    """`(G,)`: every row of a prompt's run has its evidence; `-inf` where every image of it is forbidden."""
    forbidden = (runs.rewards.view(num_groups, -1) == -torch.inf).all(1)
    return _of_runs(runs.log_evidence, runs).view(num_groups, -1)[:, 0].masked_fill(forbidden, -torch.inf)
