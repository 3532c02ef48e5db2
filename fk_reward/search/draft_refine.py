"""Drafts: many starts drawn with few steps, of which the best are drawn again with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fk_reward.search.starts import Passes, Rollout, Scored
from fk_reward.smc.resampling import flat_indices
from fk_reward.value_checks import boolean, whole_number

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True, kw_only=True)
class DraftRefine:
    """Draw N starts with few steps, and draw the best k of them again, from the same starts, with all steps.

    The reward reads finished images only, those of drafts among them: what few steps make of a start says more of
    its image than the blurred prediction early in a long run. Each refined image is the one that its start would have
    given alone. Any scheduler will do; drafts say most with a deterministic one. With a stochastic scheduler give one
    generator for each of the N particles (`generator=[...]`): the refined images then draw their own noise anew. With
    k = N the images are those of best of N, bit for bit.

    A search over starts, in the sense of Ma et al. (2025), arXiv 2501.09732. It is an optimiser: what it returns
    follows no stated law. Each pass is a call of the wrapped pipeline, so that a `callback_on_step_end` sees both.

    Attributes:
        num_particles: N, starts of one prompt. At least 1.
        draft_steps: `num_inference_steps` of a draft. At least 1, and at most that of the call.
        num_refined: k, how many starts of a prompt are drawn again; in [1, `num_particles`].
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> forecast = DraftRefine(num_particles=8, draft_steps=5, num_refined=2).population().forecast(20)
        >>> sum(forecast.steps), forecast.scorings, forecast.finished
        (80, (8,), 2)
    """

    default_eta: ClassVar[float | None] = None
    proportional: ClassVar[tuple[str, ...]] = ("num_refined",)  # to num_particles, where a budget sets it

    num_particles: int = 8
    draft_steps: int = 5
    num_refined: int = 2
    abstain: bool = False

    def __post_init__(self) -> None:
        numbers = {
            name: whole_number(name, getattr(self, name), minimum=1)
            for name in ("num_particles", "draft_steps", "num_refined")
        }
        if numbers["num_refined"] > numbers["num_particles"]:
            raise ValueError(
                f"num_refined should be in [1, num_particles = {self.num_particles}], got {self.num_refined}."
            )
        boolean("abstain", self.abstain)
        vars(self).update(numbers)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> Passes:
        """The refined images, and the sizes of both passes."""
        return Passes(
            lambda num_steps: ((self.num_particles, self.draft_steps), (self.num_refined, num_steps)),
            num_groups,
            finished=self.num_refined,
            abstain=self.abstain,
        )

    def run(self, rollout: Rollout, *, num_groups: int, generators: Sequence[Generator]) -> Scored:  # noqa: ARG002
        """Draw the drafts, and the best of them again.

        Raises:
            ValueError: where a draft has more steps than a whole trajectory.
        """
        if self.draft_steps > rollout.num_steps:
            raise ValueError(
                f"draft_steps should be at most num_inference_steps = {rollout.num_steps}, got {self.draft_steps}."
            )
        drafts = rollout(num_particles=self.num_particles, num_steps=self.draft_steps)
        # in the order of the starts: with num_refined = num_particles nothing is permuted, and all is as in best of N
        kept = Passes.best(drafts.rewards.view(num_groups, -1), self.num_refined)
        particles = flat_indices(kept, self.num_particles)
        return rollout(drafts.noise[particles], num_particles=self.num_refined, particles=particles)
