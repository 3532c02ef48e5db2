"""A search that another package could register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fk_reward.search import PlainPopulation


@dataclass(frozen=True, kw_only=True)
class First:
    """Nobody moves.

    Attributes:
        num_particles: K, the particles of one prompt.
        offset: A number of its own.
    """

    num_particles: int = 3
    offset: int = 0
    default_eta: ClassVar[float | None] = None

    def population(self, num_groups=1, generators=None, *, spread=None):
        return PlainPopulation(self.num_particles, num_groups)
