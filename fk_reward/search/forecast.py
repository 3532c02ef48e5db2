"""How many particles there are in the course of a call: what the denoiser, the decoders and the reward get."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from fk_reward.search.feynman_kac import FKSteeringConfig


@dataclass(frozen=True)
class Population:
    """Particles of one prompt.

    Attributes:
        steps: in each step of the denoiser.
        scorings: at each scoring step, before it leaves fewer.
        finished: at the end.
    """

    steps: tuple[int, ...]
    scorings: tuple[int, ...]
    finished: int

    @property
    def num_scored(self) -> int:
        """Pictures that are decoded and scored, the finished ones among them."""
        return sum(self.scorings) + self.finished


def population(config: FKSteeringConfig, num_steps: int) -> Population:
    """The particles of a call; with `stop_reward` what it scores at most.

    Args:
        config: settings of the sampler.
        num_steps: scheduler steps, one call of the denoiser each.

    Example:
        >>> population(FKSteeringConfig(num_particles=8, final_particles=2, num_resamples=2), 5)
        Population(steps=(8, 8, 4, 4, 2), scorings=(8, 4), finished=2)
    """
    marks = config.scoring_steps(num_steps) if config.resamples else ()
    sizes = (config.num_particles, *config.population_sizes(len(marks)))
    steps = tuple(sizes[bisect_left(marks, step)] for step in range(num_steps))
    return Population(steps, sizes[: len(marks)], sizes[-1])
