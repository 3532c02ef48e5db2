"""Pruning: many starts, of which the best go on at each cut. None is copied."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fk_reward.search.base import PlainPopulation, step_at
from fk_reward.search.diversity import checked_group_selection
from fk_reward.value_checks import boolean, real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Begin with many particles, and at each cut go on with those of the highest reward.

    None is copied, so that any scheduler will do, deterministic ones too: a particle that is left at the end is the
    image that its start would have given alone. Of a stochastic scheduler that holds with one generator for each
    particle (`generator=[...]`), which then goes with it. One generator for all draws other numbers for a smaller
    batch: good images still, but not those of the same starts alone.

    Successive halving of Jamieson and Talwalkar (2016), with cuts placed by hand. It is an optimiser: what it returns
    follows no stated law.

    Attributes:
        num_particles: starts of one prompt. At least 1.
        keep: how many particles of a prompt go on after each cut, in descending order, at most `num_particles`.
        at: where the cuts are, as fractions of the trajectory in [0, 1], ascending, one for each number of `keep`.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.
        selection: of several images that are returned: `"best"`, those of the highest reward, or `"diverse"`, a group
            of high rewards whose images differ (`fk_reward.search.diversity`).
        diversity_weight: with `"diverse"`, what a mean distance is worth in standard deviations of the reward.

    Example:
        >>> Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55)).population().forecast(20).scorings
        (12, 7)
    """

    default_eta: ClassVar[float | None] = None
    proportional: ClassVar[tuple[str, ...]] = ("keep",)  # to num_particles, where a budget sets it

    num_particles: int = 12
    keep: tuple[int, ...] = (7, 4)
    at: tuple[float, ...] = (0.4, 0.55)
    abstain: bool = False
    selection: str = "best"
    diversity_weight: float = 1.0

    def __post_init__(self) -> None:
        vars(self)["diversity_weight"] = checked_group_selection(self.selection, self.diversity_weight)
        number = whole_number("num_particles", self.num_particles, minimum=1)
        keep = tuple(whole_number(f"keep[{i}]", n, minimum=1) for i, n in enumerate(_listed("keep", self.keep)))
        at = tuple(real_number(f"at[{i}]", f, low=0.0, high=1.0) for i, f in enumerate(_listed("at", self.at)))
        if len(keep) != len(at):
            raise ValueError(
                f"keep and at should have one number for each cut, got {len(keep)} in keep and {len(at)} in at."
            )
        if any(after > before for before, after in itertools.pairwise((number, *keep))):
            raise ValueError(f"keep should descend from num_particles = {number}, got {keep}.")
        if any(later <= earlier for earlier, later in itertools.pairwise(at)):
            raise ValueError(f"at should ascend, got {at}.")
        boolean("abstain", self.abstain)
        vars(self).update(num_particles=number, keep=keep, at=at)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PruningPopulation:
        """The particles of one call."""
        return PruningPopulation(self, num_groups)


class PruningPopulation(PlainPopulation):
    """Particles of which fewer and fewer go on.

    Args:
        config: the cuts.
        num_groups: G.

    Example:
        >>> import torch
        >>> population = Pruning(num_particles=3, keep=(2,), at=(0.5,)).population()
        >>> population.begin(10)
        >>> population.advance(torch.tensor([0.3, 0.1, 0.2]), step=5)
        tensor([0, 2])
    """

    def __init__(self, config: Pruning, num_groups: int = 1) -> None:
        super().__init__(config.num_particles, num_groups, abstain=config.abstain)
        self._config = config

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """Cuts of the trajectory. Of several at the same step the last one counts."""
        # There is no step before which the finished image could be cut: the last step is the latest place.
        last = num_steps - 1
        return {
            min(step_at(fraction, num_steps), last): number
            for fraction, number in zip(self._config.at, self._config.keep, strict=True)
        }

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """The best go on, in their order; of equal rewards the first."""
        self.refuse_ratio(log_ratio)
        grouped, number = self.grouped(rewards, step=step), self.size_after(step)
        return None if number >= self.num_particles else self.moved(self.best(grouped, number))


def _listed(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} should be a list of numbers, one for each cut, got {values!r}.")
    return tuple(values)
