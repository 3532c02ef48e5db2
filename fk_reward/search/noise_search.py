"""Noise search: whole images from better and better starts, in rounds; for models of one or a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

from fk_reward.search.base import SearchConfig
from fk_reward.search.budget import largest_within
from fk_reward.search.metropolis import accepted
from fk_reward.search.starts import Passes, Rollout, Scored
from fk_reward.smc.resampling import flat_indices
from fk_reward.smc.reward_scale import CARD, checked_reward_scale, scale_of_card
from fk_reward.value_checks import boolean, real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

Draw: TypeAlias = "Callable[[Tensor], Tensor]"
"""Starts `(G * K, ...)`, to normal numbers of the same shape; those of a prompt come from its own generator."""

_IMAGE_AXES = 4  # batch, channels, height, width


@dataclass(frozen=True, kw_only=True)
class NoiseSearch:
    """Draw K images of a prompt from K starts, look at their rewards, and draw again from other starts, R times.

    Every reward is that of a finished image, and each round costs K images: it is made for models of one or a few steps
    (SDXL-Turbo, LCM, distilled models), of which many whole images cost little and predictions on the way say little.
    The first K starts are those of the call, so that one round is best of K. A strategy says what comes next:

    - `"random"`: new starts, which is best of K * R (random search of Ma et al. 2025, arXiv 2501.09732).
    - `"zero-order"`: K neighbours of the best start so far, `sqrt(1 - s^2) x + s noise` (zero-order search of the same
      paper, which takes neighbours at a fixed distance). The best one is kept until a better one is found.
    - `"cem"`: the cross-entropy method (Rubinstein 1999) on the low frequencies of the start, which decide the layout:
      a normal distribution is fitted to those of the best starts of a round, and the next are drawn from it. All other
      frequencies are drawn anew each time.
    - `"pcn"`: K Markov chains of preconditioned Crank-Nicolson steps (Cotter et al. 2013, arXiv 1202.0709): each
      proposes `sqrt(1 - s^2) x + s noise` and accepts it with probability `min(1, exp(lambda (r' - r)))`.

    The first three are optimisers: what they return follows no stated law, and the more rounds the more they find what
    the reward alone likes. `"pcn"` has one: each chain leaves the law `N(x; 0, I) exp(lambda r(x))` of starts as it is,
    which is plain noise at lambda 0, and comes to it with more rounds. Its K images are the last ones of the K chains
    (take all of them, or one at random: the best of them is biased upwards).

    Any scheduler will do. Under a stochastic one the noise of the steps decides as much of an image as its start, or
    more (LCM and SDE solvers), so that every round draws it anew: a neighbour has the start in common with the best
    image, not its steps, and a state of `"pcn"` is a start with its steps, of which images follow the tilted law.

    Attributes:
        num_particles: K, images of a prompt in a round. At least 1.
        num_rounds: R, at least 1.
        strategy: `"random"`, `"zero-order"`, `"cem"` or `"pcn"`.
        step_size: s, how far a neighbour or a proposal is from its start, in (0, 1]: 1 is a new start, and two starts
            correlate by `sqrt(1 - s^2)`. Of `"zero-order"` and `"pcn"`.
        reward_scale: lambda of `"pcn"`, at least 0, which means something only relative to the spread of the reward.
            `"card"` is 1.5 divided by the spread of the reward's card.
        num_frequencies: of `"cem"`: how many of the lowest frequencies of each axis are searched, at least 1.
        elite_share: of `"cem"`: share of the starts of a round to which the distribution is fitted, in (0, 1].
        learning_rate: of `"cem"`: how far mean and deviation move to those of the best, in (0, 1].
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> NoiseSearch(num_particles=4, num_rounds=3).population().forecast(2).steps
        (4, 4, 4, 4, 4, 4)
    """

    default_eta: ClassVar[float | None] = None
    set_by_budget: ClassVar[tuple[str, ...]] = ("num_rounds",)

    num_particles: int = 4
    num_rounds: int = 4
    strategy: str = "zero-order"
    step_size: float = 0.3
    reward_scale: float | str = CARD
    num_frequencies: int = 4
    elite_share: float = 0.5
    learning_rate: float = 0.7
    abstain: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy should be one of {', '.join(STRATEGIES)}, got {self.strategy!r}.")
        smallest = math.ulp(0.0)
        numbers: dict[str, Any] = {
            name: whole_number(name, getattr(self, name), minimum=1)
            for name in ("num_particles", "num_rounds", "num_frequencies")
        }
        numbers |= {
            name: real_number(name, getattr(self, name), low=smallest, high=1.0, note="0 excluded")
            for name in ("step_size", "elite_share", "learning_rate")
        }
        boolean("abstain", self.abstain)
        vars(self).update(numbers, reward_scale=checked_reward_scale(self.reward_scale))

    def for_spread(self, spread: float | None) -> NoiseSearch:
        """With lambda as a number, where the strategy needs it."""
        if self.strategy != "pcn":
            return self
        return replace(self, reward_scale=scale_of_card(self.reward_scale, spread=spread))

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (`run` gets them)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> Passes:
        """The K images that are left, and the sizes of all rounds."""
        return Passes(
            lambda num_steps: ((self.num_particles, num_steps),) * self.num_rounds,
            num_groups,
            finished=self.num_particles,
            abstain=self.abstain,
        )

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """The most rounds of K starts that a budget pays for; where it is too little for two, two of fewer starts."""
        fitted = largest_within(lambda number: replace(self, num_rounds=number), price, budget)
        if isinstance(fitted, NoiseSearch) and fitted.num_rounds > 1:
            return fitted
        fewer = largest_within(lambda number: replace(self, num_particles=number, num_rounds=2), price, budget)
        return fewer or largest_within(lambda number: replace(self, num_particles=number, num_rounds=1), price, budget)

    def run(self, rollout: Rollout, *, num_groups: int, generators: Sequence[Generator]) -> Scored:
        """Draw round after round.

        Raises:
            ValueError: for `"cem"` with starts that are no images, as the packed ones of Flux.
        """
        draw = _draws(generators)
        state = STRATEGIES[self.strategy](self, rollout(num_particles=self.num_particles), num_groups)
        for _ in range(self.num_rounds - 1):
            starts = state.next_starts(draw)
            # the same numbers in each round would make its images nearly those of the first under a stochastic solver
            state.update(rollout(starts, num_particles=self.num_particles, fresh_noise=True), generators)
        return state.result()


def _draws(generators: Sequence[Generator]) -> Draw:
    def draw(like: Tensor) -> Tensor:
        size = (len(like) // len(generators), *like.shape[1:])
        noise = torch.cat([torch.randn(size, generator=generator) for generator in generators])
        return noise.to(like)

    return draw


class RandomStarts:
    """New starts in every round; the base of the strategies that keep the K best images of all rounds.

    Args:
        config: of the search.
        first: the first round.
        num_groups: G.
    """

    def __init__(self, config: NoiseSearch, first: Scored, num_groups: int) -> None:
        self.config, self.num_groups = config, num_groups
        self.best = first.take(self._best_first(first))

    def next_starts(self, draw: Draw) -> Tensor:
        """Starts of the next round."""
        return draw(self.best.noise)

    def update(self, found: Scored, generators: Sequence[Generator]) -> None:  # noqa: ARG002 (of all strategies)
        """Look at a round."""
        both = Scored.join([self.best, found])
        # prompt-major again: K of the best so far, and K of this round
        half = torch.arange(len(found.rewards)).view(self.num_groups, -1)
        both = both.take(torch.cat([half, half + len(found.rewards)], dim=1).flatten())
        self.best = both.take(self._best_first(both))

    def result(self) -> Scored:
        """The K best images of a prompt, best first."""
        return self.best

    def _best_first(self, scored: Scored) -> Tensor:
        grouped = scored.rewards.view(self.num_groups, -1)
        order = grouped.argsort(dim=1, descending=True, stable=True)[:, : self.config.num_particles]
        return flat_indices(order, grouped.shape[1])


class ZeroOrder(RandomStarts):
    """Neighbours of the best start so far."""

    def next_starts(self, draw: Draw) -> Tensor:
        """K neighbours of each prompt's best."""
        pivot = self.best.noise[:: self.config.num_particles].repeat_interleave(self.config.num_particles, dim=0)
        return neighbour(pivot, draw(pivot), self.config.step_size)


class CrossEntropy(RandomStarts):
    """Low frequencies from a normal distribution that follows the best starts of each round."""

    def __init__(self, config: NoiseSearch, first: Scored, num_groups: int) -> None:
        super().__init__(config, first, num_groups)
        if first.noise.ndim < _IMAGE_AXES:
            raise ValueError(
                f"strategy='cem' searches frequencies of starts (B, C, H, W), and those of this pipeline are "
                f"{tuple(first.noise.shape)}: use 'zero-order' or 'pcn'."
            )
        sides = first.noise.shape[-2:]
        self._bases = [cosines(side)[: config.num_frequencies].to(first.noise.device, torch.float32) for side in sides]
        low = self._low(first.noise)
        grouped = (num_groups, 1, *low.shape[1:])
        self._mean, self._deviation = low.new_zeros(grouped), low.new_ones(grouped)
        self._fit(low, first.rewards)

    def next_starts(self, draw: Draw) -> Tensor:
        """Starts with low frequencies of the fitted distribution, and plain noise in all others."""
        noise = draw(self.best.noise)
        low = self._low(noise)
        wanted = (self._mean + self._deviation * low.unflatten(0, (self.num_groups, -1))).flatten(0, 1)
        return noise + self._spread_out(wanted - low).to(noise.dtype)

    def update(self, found: Scored, generators: Sequence[Generator]) -> None:
        """Fit the distribution to the best starts of a round."""
        super().update(found, generators)
        self._fit(self._low(found.noise), found.rewards)

    def _fit(self, low: Tensor, rewards: Tensor) -> None:
        number = max(1, math.ceil(self.config.elite_share * self.config.num_particles))
        places = rewards.view(self.num_groups, -1).topk(number, dim=1).indices
        elite = low[flat_indices(places, self.config.num_particles).to(low.device)].unflatten(0, (self.num_groups, -1))
        rate = self.config.learning_rate
        self._mean = (1 - rate) * self._mean + rate * elite.mean(dim=1, keepdim=True)
        # about the new mean, so that few of the best, or one, do not end the search at once
        spread = (elite - self._mean).square().mean(dim=1, keepdim=True).sqrt()
        self._deviation = (1 - rate) * self._deviation + rate * spread

    def _low(self, starts: Tensor) -> Tensor:
        rows, columns = self._bases
        return rows @ starts.float() @ columns.T

    def _spread_out(self, low: Tensor) -> Tensor:
        rows, columns = self._bases
        return rows.T @ low @ columns


class CrankNicolson:
    """K Markov chains of a prompt.

    Args:
        config: of the search.
        first: the first round.
        num_groups: G.
    """

    def __init__(self, config: NoiseSearch, first: Scored, num_groups: int) -> None:  # noqa: ARG002 (of all strategies)
        self.config, self.states = config, first
        self._num_accepted = self._num_proposed = 0

    def next_starts(self, draw: Draw) -> Tensor:
        """A proposal of each chain."""
        starts = self.states.noise
        return neighbour(starts, draw(starts), self.config.step_size)

    def update(self, found: Scored, generators: Sequence[Generator]) -> None:
        """Accept or reject."""
        size = len(found.rewards) // len(generators)
        uniforms = torch.cat([torch.rand(size, generator=one, dtype=torch.float64) for one in generators])
        scale = scale_of_card(self.config.reward_scale, spread=None)
        taken = accepted(self.states.rewards, found.rewards, uniforms, reward_scale=scale)
        self._num_accepted += int(taken.sum())
        self._num_proposed += len(taken)
        self.states = self.states.where(~taken, found)

    def result(self) -> Scored:
        """The last state of each chain."""
        if not self._num_proposed:
            return self.states
        share = self._num_accepted / self._num_proposed
        note = (
            f"pCN: {share:.0%} of {self._num_proposed} proposals were accepted (step_size {self.config.step_size:g})."
        )
        return replace(self.states, notes=(note,))


STRATEGIES: Mapping[str, Callable[[NoiseSearch, Scored, int], Any]] = {
    "random": RandomStarts,
    "zero-order": ZeroOrder,
    "cem": CrossEntropy,
    "pcn": CrankNicolson,
}
"""Name -> what chooses the starts of the next round."""


def neighbour(starts: Tensor, noise: Tensor, step_size: float) -> Tensor:
    """`sqrt(1 - s^2) x + s noise`: standard normal again, where both are, at the correlation `sqrt(1 - s^2)`.

    Example:
        >>> neighbour(torch.tensor([5.0]), torch.tensor([10.0]), 0.6)
        tensor([10.])
    """
    return math.sqrt(1 - step_size**2) * starts + step_size * noise


def cosines(size: int) -> Tensor:
    """`(size, size)` float64: row f is the cosine of frequency f, all orthonormal (DCT-II).

    Example:
        >>> bases = cosines(5)
        >>> bool(torch.allclose(bases @ bases.T, torch.eye(5, dtype=torch.float64)))
        True
    """
    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (places + 0.5) * places[:, None]) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves
