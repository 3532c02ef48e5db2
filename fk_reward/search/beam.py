"""Beam search: each particle makes several proposals, and goes on with its best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fk_reward.search.base import SEARCH_STARTS, PlainPopulation, step_at
from fk_reward.value_checks import boolean, ordered_fractions, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Keep K particles; each is copied M times on the way, and goes on with the best of its M copies.

    At the first branching every particle becomes M, which draw noise of their own. At each later one the best of the M
    copies of a particle becomes M again, and at the last the best goes on alone. So the population grows from K to
    K * M and shrinks to K. Copies need noise: the transition must be stochastic. With K = M = 1 it is the plain
    pipeline.

    Greedy best-of-M search by the reward of the predicted clean sample: the search over paths of Ma et al. (2025),
    arXiv 2501.09732, and the hard form of SVDD (Li et al. 2024, arXiv 2408.08252). It is an optimiser: what it returns
    follows no stated law, and it goes for what the reward likes in predictions.

    Attributes:
        num_particles: K, particles of one prompt at the beginning and at the end. At least 1.
        num_proposals: M, copies of each particle between two branchings. At least 1.
        start: first branching, as a fraction of the trajectory in [0, 1].
        stop: last one, as a fraction of the trajectory in [start, 1].
        num_branchings: how many branchings there are, evenly spaced between the two, at least 2: the first branches
            only, and the last selects only.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> BeamSearch(num_particles=2, num_proposals=3, num_branchings=2).population().forecast(10).steps
        (2, 2, 2, 6, 6, 6, 6, 6, 6, 2)
    """

    default_eta: ClassVar[float | None] = 1.0  # copies part by the noise of a step

    num_particles: int = 2
    num_proposals: int = 4
    start: float = 0.2
    stop: float = 0.8
    num_branchings: int = 4
    abstain: bool = False

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {
            "num_particles": whole_number("num_particles", self.num_particles, minimum=1),
            "num_proposals": whole_number("num_proposals", self.num_proposals, minimum=1),
            "num_branchings": whole_number("num_branchings", self.num_branchings, minimum=2),
            **ordered_fractions(start=self.start, stop=self.stop),
        }
        boolean("abstain", self.abstain)
        vars(self).update(numbers)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (the best is no draw)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> BeamPopulation:
        """The particles of one call."""
        return BeamPopulation(self, num_groups)


class BeamPopulation(PlainPopulation):
    """K particles, or K times M proposals that stand beside one another.

    Args:
        config: the branchings.
        num_groups: G.

    Example:
        >>> population = BeamSearch(num_particles=1, num_proposals=2, num_branchings=2).population()
        >>> population.begin(10)
        >>> population.advance(torch.tensor([0.5]), step=2)
        tensor([0, 0])
        >>> population.advance(torch.tensor([0.1, 0.7]), step=8)
        tensor([1])
    """

    def __init__(self, config: BeamSearch, num_groups: int = 1) -> None:
        largest = config.num_particles * config.num_proposals
        super().__init__(config.num_particles, num_groups, max_particles=largest, abstain=config.abstain)
        self.copies = config.num_proposals > 1
        self._config = config

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """Branchings of the trajectory, all different; none where one proposal is the particle itself."""
        config = self._config
        if config.num_proposals == 1:
            return {}
        gaps = config.num_branchings - 1
        fractions = (config.start + (config.stop - config.start) * i / gaps for i in range(config.num_branchings))
        places = [step_at(fraction, num_steps) for fraction in fractions]
        # no copies before the last step, which adds no noise: they would be equal in the end
        branchings = sorted({min(place, num_steps - 2) for place in places[:-1]} - {-1})
        # the last place selects only, so that it may be the last step
        last = min(places[-1], num_steps - 1)
        branchings = [step for step in branchings if step < last]
        if not branchings:
            return {}
        return {**dict.fromkeys(branchings, self.max_particles), last: config.num_particles}

    def begin(self, num_steps: int) -> str | None:
        """Place the branchings; a sentence where there is no room for two of them."""
        super().begin(num_steps)
        if self.copies and not self._sizes:
            return (
                f"A trajectory of {num_steps} steps has no room for two branchings, so nothing is proposed: this is "
                f"best of {self.num_particles}. {SEARCH_STARTS}"
            )
        return None

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """The best proposal of each particle goes on, and makes proposals again unless this is the last branching."""
        self.refuse_ratio(log_ratio)
        grouped = self.grouped(rewards, step=step)
        by_parent = grouped.unflatten(1, (self._config.num_particles, -1))
        width = by_parent.shape[2]
        best = self.chosen(by_parent) + width * torch.arange(self._config.num_particles)
        copies = self.size_after(step) // self._config.num_particles
        return self.moved(best.repeat_interleave(copies, dim=1))

    def chosen(self, by_parent: Tensor) -> Tensor:
        """`(G, K)`, the proposal of each particle that goes on, by the rewards `(G, K, M)`; of equal ones the first."""
        return by_parent.argmax(dim=2)
