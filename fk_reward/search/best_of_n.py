"""Best of N: complete trajectories, of which the best finished images are returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fk_reward.search.base import PlainPopulation
from fk_reward.search.diversity import checked_group_selection
from fk_reward.value_checks import boolean, whole_number

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Draw N images as the pipeline would, and return the best of them.

    Nothing is scored on the way and nothing is copied, so that any scheduler will do: the images are those of the
    wrapped pipeline with `num_images_per_prompt=N`, bit for bit. (Stable Diffusion 3 and Flux pass no `generator` to
    their scheduler, and here it gets the caller's: a stochastic one then draws other noise.) The baseline of every
    other search.

    Attributes:
        num_particles: N, images of one prompt. At least 1.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.
        selection: of several images that are returned: `"best"`, those of the highest reward, or `"diverse"`, a group
            of high rewards whose images differ (`fk_reward.search.diversity`).
        diversity_weight: with `"diverse"`, what a mean distance is worth in standard deviations of the reward.

    Example:
        >>> BestOfN(num_particles=8).population().forecast(50).num_scored
        8
    """

    default_eta: ClassVar[float | None] = None

    num_particles: int = 4
    abstain: bool = False
    selection: str = "best"
    diversity_weight: float = 1.0

    def __post_init__(self) -> None:
        vars(self)["diversity_weight"] = checked_group_selection(self.selection, self.diversity_weight)
        vars(self)["num_particles"] = whole_number("num_particles", self.num_particles, minimum=1)
        boolean("abstain", self.abstain)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PlainPopulation:
        """N particles that stay where they are."""
        return PlainPopulation(self.num_particles, num_groups, abstain=self.abstain)
