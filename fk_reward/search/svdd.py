"""SVDD: each particle makes several proposals, and goes on with one that is drawn by their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fk_reward.search.beam import BeamPopulation, BeamSearch
from fk_reward.smc.particle_filter import one_per_group
from fk_reward.smc.resampling import one_of_each
from fk_reward.smc.reward_scale import CARD, checked_reward_scale, scale_of_card

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class SVDD(BeamSearch):
    """Keep K particles; each is copied M times, and goes on with one copy, drawn with weights exp(lambda r).

    Soft value-based decoding of Li et al. (2024), arXiv 2408.08252, algorithm 1 with the reward of the predicted clean
    sample as the value (their SVDD-PM), and lambda = 1 / alpha. Branchings, sizes and cost are those of `BeamSearch`,
    which it becomes with lambda = infinity; the paper branches at every step. Copies need noise: the transition must be
    stochastic. With K = M = 1 it is the plain pipeline; with lambda = 0 it draws what the plain pipeline draws, at M
    times its cost.

    The law is not the tilted one. With M proposals a transition p(x' | x) becomes
    `M p(x' | x) E[exp(lambda r(x')) / (exp(lambda r(x')) + sum of M - 1 other proposals' exp(lambda r))]`, and for
    M to infinity `p(x' | x) exp(lambda r(x')) / E[exp(lambda r) | x]`, from which it differs by O(1 / M). That limit is
    the tilted law only where the reward of the prediction is the soft value, log E[exp(lambda r(x0)) | x'] / lambda,
    and the start says nothing of the image. No weights correct for it: `FKSteeringConfig` has them.

    Attributes:
        num_particles: K, particles of one prompt at the beginning and at the end. At least 1.
        num_proposals: M, copies of each particle between two branchings. At least 1.
        start: first branching, as a fraction of the trajectory in [0, 1].
        stop: last one, as a fraction of the trajectory in [start, 1].
        num_branchings: how many branchings there are, evenly spaced between the two, at least 2: the first branches
            only, and the last selects only.
        reward_scale: lambda, at least 0, which means something only relative to the spread of the reward among the
            proposals of a particle; 0 draws uniformly. `"card"` is 1.5 divided by the spread of the reward's card.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> SVDD(num_particles=1, num_proposals=4, num_branchings=4, start=0.0).population().forecast(6).steps
        (1, 4, 4, 4, 4, 4)
    """

    num_particles: int = 1
    num_proposals: int = 4
    start: float = 0.2
    stop: float = 1.0
    num_branchings: int = 8
    reward_scale: float | str = CARD
    abstain: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(reward_scale=checked_reward_scale(self.reward_scale))

    def for_spread(self, spread: float | None) -> SVDD:
        """With lambda as a number."""
        return replace(self, reward_scale=scale_of_card(self.reward_scale, spread=spread))

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> SVDDPopulation:
        """The particles of one call."""
        return SVDDPopulation(self, num_groups, generators, spread=spread)


class SVDDPopulation(BeamPopulation):
    """K particles, or K times M proposals, of which one is drawn for each particle.

    Args:
        config: the branchings, and lambda.
        num_groups: G.
        generators: source of the draws: one, or one for each prompt; a new one with seed 0 when missing.
        spread: of the reward's card, for `reward_scale="card"`.

    Example:
        >>> population = SVDD(num_proposals=2, num_branchings=2, reward_scale=100.0).population()
        >>> population.begin(10)
        >>> population.advance(torch.tensor([0.5]), step=2)
        tensor([0, 0])
        >>> population.advance(torch.tensor([0.1, 0.7]), step=9)
        tensor([1])
    """

    def __init__(
        self,
        config: SVDD,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> None:
        super().__init__(config, num_groups)
        self._reward_scale, self._spread = config.reward_scale, spread
        self._generators = one_per_group(generators, num_groups)

    def chosen(self, by_parent: Tensor) -> Tensor:
        """`(G, K)`, drawn by exp(lambda r). A forbidden proposal (-inf) is drawn only where all are forbidden."""
        scale = scale_of_card(self._reward_scale, spread=self._spread)
        forbidden = by_parent == -torch.inf
        log_weights = (scale * by_parent.masked_fill(forbidden, 0.0)).masked_fill(forbidden, -torch.inf)
        pairs = zip(log_weights, self._generators, strict=True)
        return torch.stack([one_of_each(families, generator) for families, generator in pairs])
