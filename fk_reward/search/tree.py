"""Tree search: trunks that branch once their early noise is spent, and branches that are pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import torch

from fk_reward.search.base import SEARCH_STARTS, PlainPopulation, SearchConfig, step_at
from fk_reward.search.budget import largest_within, scaled
from fk_reward.search.diversity import checked_group_selection
from fk_reward.search.pruning import Pruning
from fk_reward.value_checks import real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """Draw a few trunks for the first steps, branch each of them M times, and go on with the best branches.

    Under a stochastic scheduler the first steps decide little: two branches of one trunk can differ as much as two
    images from different starts. They cost the steps after `branch_at` alone, so that more of them can be had for what
    whole images cost. Where the branches begin to show what they will be, all but the best are dropped (`keep`, `at`),
    as by `Pruning`, whatever their trunk. With one branch it is `Pruning`, or best of K where nothing is dropped.

    How much the first steps decide depends on model, scheduler and prompt: branch before a reward tells predictions
    apart (`fk-reward record` shows when). A later branching is cheaper, and its branches are more alike. The tree of
    Jain et al. (2025), arXiv 2506.20701 (DTS*), with one branching and no values to learn. It is an optimiser: what it
    returns follows no stated law.

    Attributes:
        num_particles: K, trunks of one prompt. At least 1.
        num_branches: M, copies of each trunk, which draw noise of their own. At least 1.
        branch_at: where the trunks branch, as a fraction of the trajectory in [0, 1).
        keep: how many branches of a prompt go on after each cut, in descending order, at most K * M.
        at: where the cuts are, as fractions of the trajectory in (branch_at, 1], ascending, one for each of `keep`.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.
        selection: of several images that are returned: `"best"`, those of the highest reward, or `"diverse"`, a group
            of high rewards whose images differ (`fk_reward.search.diversity`).
        diversity_weight: with `"diverse"`, what a mean distance is worth in standard deviations of the reward.

    Example:
        >>> TreeSearch(num_branches=12, keep=(2,)).population().forecast(10).steps
        (1, 1, 1, 1, 1, 1, 12, 12, 2, 2)
    """

    default_eta: ClassVar[float | None] = 1.0  # branches part by the noise of a step
    set_by_budget: ClassVar[tuple[str, ...]] = ("num_branches",)
    proportional: ClassVar[tuple[str, ...]] = ("keep",)  # to the branches of all trunks

    num_particles: int = 1
    num_branches: int = 12
    branch_at: float = 0.45
    keep: tuple[int, ...] = (2,)
    at: tuple[float, ...] = (0.7,)
    abstain: bool = False
    selection: str = "best"
    diversity_weight: float = 1.0

    def __post_init__(self) -> None:
        vars(self)["diversity_weight"] = checked_group_selection(self.selection, self.diversity_weight)
        trunks = whole_number("num_particles", self.num_particles, minimum=1)
        branches = whole_number("num_branches", self.num_branches, minimum=1)
        below_one = math.nextafter(1.0, 0.0)
        branch_at = real_number("branch_at", self.branch_at, low=0.0, high=below_one, note="1 excluded")
        # the cuts are those of a pruning of all branches, and are checked there
        cuts = Pruning(num_particles=trunks * branches, keep=self.keep, at=self.at, abstain=self.abstain)
        if any(place <= branch_at for place in cuts.at):
            raise ValueError(
                f"at should lie behind branch_at = {branch_at:g}, where the branches begin: got {cuts.at}."
            )
        vars(self).update(num_particles=trunks, num_branches=branches, branch_at=branch_at, keep=cuts.keep, at=cuts.at)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random here)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> TreePopulation:
        """The particles of one call."""
        return TreePopulation(self, num_groups)

    def with_branches(self, number: int) -> TreeSearch:
        """The same tree with another number of branches, and as large a part of them kept.

        Example:
            >>> TreeSearch(num_branches=12, keep=(2,)).with_branches(25).keep
            (4,)
        """
        return self._sized(self.num_particles, number)

    def with_candidates(self, number: int) -> TreeSearch:
        """The same tree with so many branches of all trunks together, and as large a part of them kept.

        Where the trunks do not divide the number, there are fewer; where there are more trunks, fewer trunks.

        Args:
            number: at least 1.

        Example:
            >>> TreeSearch(num_particles=2).with_candidates(9).num_branches
            4
        """
        branches = number // self.num_particles
        return self._sized(self.num_particles, branches) if branches else self._sized(number, 1)

    def _sized(self, trunks: int, branches: int) -> TreeSearch:
        share = Fraction(trunks * branches, self.num_particles * self.num_branches)
        return replace(self, num_particles=trunks, num_branches=branches, keep=scaled(self.keep, share))

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """The most branches that a budget pays for; where it is too little for one of each trunk, fewer trunks."""
        fitted = largest_within(self.with_branches, price, budget)
        if fitted is not None:
            return fitted
        return largest_within(lambda trunks: self._sized(trunks, 1), price, budget)


class TreePopulation(PlainPopulation):
    """Trunks, then their branches, then those that are left.

    Args:
        config: of the tree.
        num_groups: G.

    Example:
        >>> population = TreeSearch(num_branches=3, keep=(2,), branch_at=0.2, at=(0.6,)).population()
        >>> population.begin(10)
        >>> population.advance(torch.tensor([0.5]), step=2)
        tensor([0, 0, 0])
        >>> population.advance(torch.tensor([0.1, 0.7, 0.3]), step=6)
        tensor([1, 2])
    """

    def __init__(self, config: TreeSearch, num_groups: int = 1) -> None:
        most = config.num_particles * config.num_branches
        super().__init__(config.num_particles, num_groups, max_particles=most, abstain=config.abstain)
        self.copies = config.num_branches > 1
        self._config = config

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """The branching, unless there is nothing to branch, and the cuts behind it."""
        config, last = self._config, num_steps - 1
        # no branching before the last step, which adds no noise: all branches would be equal
        branching = min(step_at(config.branch_at, num_steps), last - 1) if self.copies else -1
        if self.copies and branching < 0:
            return {}
        cuts = zip(config.at, config.keep, strict=True)
        places = {min(max(step_at(fraction, num_steps), branching + 1), last): number for fraction, number in cuts}
        return {branching: self.max_particles, **places} if self.copies else places

    def begin(self, num_steps: int) -> str | None:
        """Place the branching; a sentence where there is no room for it."""
        super().begin(num_steps)
        if self.copies and not self._sizes:
            return (
                f"A trajectory of {num_steps} steps has no room for a branching, so nothing branches: this is "
                f"best of {self.num_particles}. {SEARCH_STARTS}"
            )
        return None

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """Every trunk branches; of branches the best go on, in their order, of equal rewards the first."""
        self.refuse_ratio(log_ratio)
        grouped, number = self.grouped(rewards, step=step), self.size_after(step)
        if number == self.num_particles:
            return None
        if number > self.num_particles:
            trunks = torch.arange(number) * self.num_particles // number  # all alike, those of one beside each other
            return self.moved(trunks.expand(self.num_groups, -1))
        return self.moved(self.best(grouped, number))
