"""A search of your own, a knockout tournament: neighbours are paired, and the better of each pair goes on.

Any config is passed as it is, `pipe(prompt, search=Tournament())`. To give it a name, register it in your package:

    [project.entry-points."fk_reward.searches"]
    tournament = "custom_search:Tournament"

Then `pipe(prompt, search="tournament", num_particles=16)` and `fk-reward generate --search tournament` find it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fk_reward import FKSteeringPipeline
from fk_reward.search import PlainPopulation


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """Settings of the tournament.

    Attributes:
        num_particles: starts of one prompt; every round halves them.
        rounds: when they meet, as fractions of the trajectory, ascending.
    """

    default_eta: ClassVar[float | None] = None  # nobody is copied: any scheduler as it is

    num_particles: int = 4
    rounds: tuple[float, ...] = (0.4, 0.6)

    def population(
        self,
        num_groups: int = 1,
        generators: Any = None,  # noqa: ARG002 (nothing is drawn)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PlainPopulation:
        """The particles of one call."""
        return TournamentPopulation(self, num_groups)


class TournamentPopulation(PlainPopulation):
    """Who is left."""

    def __init__(self, config: Tournament, num_groups: int) -> None:
        super().__init__(config.num_particles, num_groups)
        self.rounds = config.rounds

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """Round -> particles of a prompt that go on, half of them, rounded up."""
        number, sizes = self.first_particles, {}
        # a set: two rounds that a short run puts at one step are one, and none comes after the last step
        for step in sorted({min(int(at * num_steps), num_steps - 1) for at in self.rounds}):
            number = (number + 1) // 2
            sizes[step] = number
        return sizes

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor:
        """The better of each pair; of an odd number the last goes on unbeaten."""
        self.refuse_ratio(log_ratio)
        pairs = self.grouped(rewards, step=step).split(2, dim=1)
        winners = [2 * place + pair.argmax(dim=1) for place, pair in enumerate(pairs)]
        return self.moved(torch.stack(winners, dim=1))


def main(model: str = "shapes-sd", reward: str = "shapes-clipscore", num_inference_steps: int = 5) -> None:
    """Draw an image with the tournament and print what it cost."""
    pipe = FKSteeringPipeline.from_pretrained(model, reward=reward)
    out = pipe("a photo of a red circle", search=Tournament(), num_inference_steps=num_inference_steps)
    out.images[0].save("tournament.png")
    print([step.num_particles for step in out.trace.steps], out.trace.cost)


if __name__ == "__main__":
    main()
