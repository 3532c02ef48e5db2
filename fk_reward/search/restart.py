"""Restart: finished images are noised again and redrawn, and the new ones are accepted by their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fk_reward.search.base import step_at
from fk_reward.search.metropolis import accepted
from fk_reward.search.starts import Passes, Rollout, Scored
from fk_reward.smc.reward_scale import CARD, checked_reward_scale, scale_of_card
from fk_reward.value_checks import boolean, real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

_SELECTIONS = ("best", "sample")


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Draw K images, and again and again noise each of them to a level, redraw it, and accept the new one or keep it.

    The new image is accepted with probability min(1, exp(lambda (r_new - r_old))). Each of the K images is a Markov
    chain of its own, which exchanges nothing with the others and converges to `p(x) exp(lambda r(x))` at any K. The
    proposal, `q(x_t | x)` of the forward process and then `p(x' | x_t)` of the sampler, is reversible for p, since
    `p(x) q(x_t | x) = p(x_t) p(x | x_t)`, so that only the rewards are left of the acceptance of Metropolis and
    Hastings (1970). Renoising a sample is the step of Xu et al. (2023), arXiv 2306.14878 (Restart sampling), which has
    no reward and no acceptance.

    That needs a stochastic sampler: an ODE sends x_t to one single x', which is not p(x' | x_t), and the chain then
    converges elsewhere; deterministic schedulers are refused. With the steps of a real sampler p(x | x_t) is not quite
    that of the forward process; the error is that of the steps and shrinks as they do. Few rounds are a search with a
    bias towards p.

    Attributes:
        num_particles: K, chains of one prompt. At least 1.
        num_restarts: how often every image is noised and redrawn. 0 is best of K.
        strength: share of the trajectory that is redrawn, in (0, 1), as of Diffusers' image-to-image pipelines: high
            ones change more and are accepted less often. At least one step, and never all of them.
        reward_scale: lambda, at least 0; 0 accepts everything. `"card"` is 1.5 divided by the spread that the reward's
            card states.
        selection: what is returned of a prompt: `"best"`, the best image that each chain has seen, those of the
            highest reward first; or `"sample"`, the last image of each chain, in their order, which follow the tilted
            law once the chains have converged.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> forecast = Restart(num_particles=2, num_restarts=3, strength=0.5).population().forecast(20)
        >>> sum(forecast.steps), forecast.scorings, forecast.finished
        (100, (2, 2, 2), 2)
    """

    default_eta: ClassVar[float | None] = 1.0
    needs_noise: ClassVar[bool] = True

    num_particles: int = 4
    num_restarts: int = 4
    strength: float = 0.5
    reward_scale: float | str = CARD
    selection: str = "best"
    abstain: bool = False

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {
            "num_particles": whole_number("num_particles", self.num_particles, minimum=1),
            "num_restarts": whole_number("num_restarts", self.num_restarts, minimum=0),
            "strength": real_number("strength", self.strength, low=0.0, high=1.0),
        }
        if not 0 < numbers["strength"] < 1:
            raise ValueError(f"strength should be between 0 and 1, got {self.strength}: at 1 nothing would be left.")
        if self.selection not in _SELECTIONS:
            raise ValueError(f"selection should be one of {list(_SELECTIONS)}, got {self.selection!r}.")
        boolean("abstain", self.abstain)
        vars(self).update(numbers, reward_scale=checked_reward_scale(self.reward_scale))

    def num_redrawn(self, num_steps: int) -> int:
        """Steps of a redraw; at least one, and fewer than `num_steps`.

        Example:
            >>> Restart(strength=0.5).num_redrawn(20), Restart(strength=0.01).num_redrawn(20)
            (10, 1)
        """
        return max(1, min(step_at(self.strength, num_steps), num_steps - 1))

    def for_spread(self, spread: float | None) -> Restart:
        """With lambda as a number."""
        return replace(self, reward_scale=scale_of_card(self.reward_scale, spread=spread))

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (`run` gets them)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> Passes:
        """The images to select from, and the sizes of all passes."""

        def passes(num_steps: int) -> Sequence[tuple[int, int]]:
            redraw = (self.num_particles, self.num_redrawn(num_steps))
            return ((self.num_particles, num_steps), *[redraw] * self.num_restarts)

        kind = Passes if self.selection == "best" else _LastImages
        return kind(passes, num_groups, finished=self.num_particles, abstain=self.abstain)

    def run(self, rollout: Rollout, *, num_groups: int, generators: Sequence[Generator]) -> Scored:
        """Draw, and redraw.

        Raises:
            ValueError: for a trajectory of one step, of which none could be left out.
        """
        if self.num_restarts and rollout.num_steps < 2:
            raise ValueError(f"Restart redraws a part of the steps, and there is {rollout.num_steps} of them.")
        from_step = rollout.num_steps - self.num_redrawn(rollout.num_steps)
        now = best = rollout(num_particles=self.num_particles)
        num_accepted = 0
        for _ in range(self.num_restarts):
            noise = _normal(now.latents, generators)
            proposed = rollout(
                now.latents, noise=noise, from_step=from_step, num_particles=self.num_particles, fresh_noise=True
            )
            taken = self.accepted(now.rewards, proposed.rewards, generators)
            num_accepted += int(taken.sum())
            best = _where(proposed.rewards > best.rewards, proposed, best)
            now = _where(taken, proposed, now)
        if self.num_restarts:
            number = self.num_restarts * num_groups * self.num_particles
            rollout.note(f"{num_accepted} of {number} redrawn images were accepted.")
        return best if self.selection == "best" else now

    def accepted(self, rewards: Tensor, proposed: Tensor, generators: Sequence[Generator]) -> Tensor:
        """Which redrawn images take the place of the ones before.

        Args:
            rewards: `(G * K,)`, of the images now; `-inf` forbids one.
            proposed: `(G * K,)`, of the redrawn ones.
            generators: one for each prompt.

        Returns:
            `(G * K,)` bool. Among forbidden images chains move freely; no other chain becomes one.

        Example:
            >>> now, new = torch.tensor([1.0, 0.0, -torch.inf]), torch.tensor([2.0, -torch.inf, -torch.inf])
            >>> Restart(reward_scale=10.0).accepted(now, new, [torch.Generator()])
            tensor([ True, False,  True])
        """
        rows = len(rewards) // len(generators)
        uniforms = torch.cat([torch.rand(rows, dtype=torch.float64, generator=one) for one in generators])
        scale = scale_of_card(self.reward_scale, spread=None)
        return accepted(rewards, proposed, uniforms, reward_scale=scale)


class _LastImages(Passes):
    """The last image of each chain, in the order of the chains: the best of them would follow another law."""

    def order(self, rewards: Tensor) -> Tensor:
        """Allowed ones first."""
        return (rewards == -torch.inf).long().argsort(dim=1, stable=True)


def _normal(like: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Standard normal numbers `(G * K, ...)` float32, those of a prompt from its own generator."""
    shape = (len(like) // len(generators), *like.shape[1:])
    return torch.cat([torch.randn(shape, generator=one) for one in generators]).to(like.device)


def _where(mask: Tensor, one: Scored, other: Scored) -> Scored:
    """Rows of `one` where the mask `(G * K,)` says so, of `other` elsewhere."""
    if not bool(mask.any()):
        return other
    return one.where(mask, other)
