"""What a search would have found on recorded trajectories: policies, their prices, their expected values.

Letters of shapes: P prompts, S recorded seeds of a prompt, T steps, R random subsets of the seeds, N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from fk_reward.search.base import SearchConfig, step_at
from fk_reward.search.best_of_n import BestOfN
from fk_reward.search.pruning import Pruning
from fk_reward.search.replay.records import Floats
from fk_reward.value_checks import real_number

_CHUNK = 256  # subsets that are simulated at once: some ten megabytes
_MOST_DECIMALS = 12


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What the parts of a trajectory cost, in any unit.

    Attributes:
        step: of one sample through one step of the denoiser. The default is that of FLUX.1-dev in TFLOP.
        reward: of one image that is decoded and scored.

    Raises:
        ValueError: a step that costs nothing, or a negative price.

    Example:
        >>> round(Prices().of(Policy(4), 20), 6), round(Prices().of(Policy(6, ((8, 2),)), 20), 6)
        (796.8, 762.0)
    """

    step: float = 9.9
    reward: float = 1.2

    def __post_init__(self) -> None:
        vars(self).update(step=real_number("step_cost", self.step, low=0.0))
        vars(self).update(reward=real_number("reward_cost", self.reward, low=0.0))
        if self.step == 0:
            raise ValueError("step_cost should be above 0, got 0.")

    def of(self, policy: Policy, num_steps: int) -> float:
        """The cost of a policy: whoever is dropped at a step has made it, and was scored."""
        cost, first, number = 0.0, 0, policy.num_particles
        for step, keep in (*policy.cuts, (num_steps - 1, 0)):
            cost += number * ((step + 1 - first) * self.step + self.reward)
            first, number = step + 1, keep
        return cost

    def most_starts(self, cuts: tuple[tuple[int, int], ...], budget: float, num_steps: int) -> int:
        """How many starts the budget pays for, with these cuts after them."""
        first = cuts[0][0] if cuts else num_steps - 1
        start = (first + 1) * self.step + self.reward
        return math.floor((budget - self.of(Policy(0, cuts), num_steps)) / start + 1e-9)


@dataclass(frozen=True)
class Policy:
    """Some starts, of which the best go on at each cut; in whole steps of a trajectory of known length.

    Attributes:
        num_particles: starts. Without a cut this is best of N.
        cuts: (step, how many go on), by ascending steps.

    Example:
        >>> Policy(6, ((8, 2),)).config(20)
        Pruning(num_particles=6, keep=(2,), at=(0.4,), abstain=False, selection='best', diversity_weight=1.0)
        >>> Policy.of(Pruning(num_particles=6, keep=(2,), at=(0.4,)), 20)
        Policy(num_particles=6, cuts=((8, 2),))
    """

    num_particles: int
    cuts: tuple[tuple[int, int], ...] = ()

    def config(self, num_steps: int) -> BestOfN | Pruning:
        """The search that does this in so many steps."""
        if not self.cuts:
            return BestOfN(num_particles=self.num_particles)
        keep, at = tuple(keep for _, keep in self.cuts), tuple(_fraction(step, num_steps) for step, _ in self.cuts)
        return Pruning(num_particles=self.num_particles, keep=keep, at=at)

    @classmethod
    def of(cls, config: SearchConfig, num_steps: int) -> Policy:
        """The policy of a search that can be replayed.

        Raises:
            ValueError: for any other search; the message says why it cannot be.
        """
        if isinstance(config, BestOfN):
            return cls(config.num_particles)
        if isinstance(config, Pruning):
            return cls(config.num_particles, tuple(sorted(config.population().sizes(num_steps).items())))
        raise ValueError(cannot_replay(type(config).__name__, copies=config.population(1).copies))


def cannot_replay(name: str, *, copies: bool) -> str:
    """Why a search cannot be replayed.

    Args:
        name: of the search.
        copies: whether it copies particles.
    """
    why = (
        "copies particles, and how a copy would have gone on stands in no record of plain trajectories: each of them "
        "has one continuation"
        if copies
        else "draws other trajectories than those that were recorded, or chooses by other rules"
    )
    return (
        f"{name} cannot be replayed: it {why}. What can be is a search that only drops particles (Pruning, BestOfN); "
        "for the settings of FK steering use the spread, the steps and the weights that a replay measures."
    )


def _fraction(step: int, num_steps: int) -> float:
    """The shortest fraction of the trajectory that is this step."""
    exact = step / num_steps
    rounded = (round(exact, decimals) for decimals in range(1, _MOST_DECIMALS))
    return next((f for f in rounded if step_at(f, num_steps) == step), exact)


@lru_cache
def best_of_weights(num_seeds: int, size: int) -> Floats:
    """Chance of each seed to be the best of a random subset, by ascending reward: C(i, N - 1) / C(S, N) for i = 0, ...

    Args:
        num_seeds: S.
        size: N, of the subset, in [1, S].

    Returns:
        `(S,)` float64, which sums to 1.

    Example:
        >>> best_of_weights(3, 2).round(3).tolist()
        [0.0, 0.333, 0.667]
    """
    chances = [math.comb(below, size - 1) / math.comb(num_seeds, size) for below in range(num_seeds)]
    weights = np.array(chances)
    weights.setflags(write=False)  # the cache hands out the same array again
    return weights


def best_of_n(finished: Floats, size: int, values: Floats | None = None) -> Floats:
    """Exact expected value of the best of N seeds, over all subsets of N of the recorded seeds.

    Args:
        finished: `(P, S)`, rewards by which the best one is chosen.
        size: N.
        values: `(P, S)`, what the chosen image is worth; its reward where missing.

    Returns:
        `(P,)`.

    Example:
        >>> best_of_n(np.array([[1.0, 5.0, 2.0]]), 3).round(6).tolist()
        [5.0]
    """
    order = finished.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(finished if values is None else values, order, axis=1)
    return ordered @ best_of_weights(finished.shape[1], size)


class Replayer:
    """Expected values of policies on recorded trajectories.

    A subset of n recorded seeds is a run with n starts: trajectories are independent, so that the mean over random
    subsets estimates the expected value without bias. All policies get the same subsets: policy and best of N begin
    with the same starts, and their difference varies little.

    Args:
        values: `(P, S, T)`, by which a policy chooses.
        worth: name -> `(P, S)`, what a finished image is worth; `"own"` is the reward that chooses.
        num_subsets: R.
        seed: of the subsets.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> replayer = Replayer(rng.standard_normal((2, 50, 4)), num_subsets=500)
        >>> replayer.worth(Policy(2))["own"].shape
        (2,)
    """

    def __init__(
        self, values: Floats, *, worth: Mapping[str, Floats] | None = None, num_subsets: int, seed: int = 0
    ) -> None:
        self.shape = values.shape
        worth = {"own": values[:, :, -1], **(worth or {})}
        self._steps = torch.as_tensor(np.ascontiguousarray(values.transpose(2, 0, 1)), dtype=torch.float32)
        self._worth = {name: torch.as_tensor(np.ascontiguousarray(part)) for name, part in worth.items()}
        self._num_subsets, self._seed = num_subsets, seed

    @cached_property
    def _orders(self) -> list[Tensor]:
        """`(P, R, S)` in chunks of R: the first n of each row are a random subset of n seeds in random order."""
        generator = Generator().manual_seed(self._seed)
        num_prompts, num_seeds, _ = self.shape
        sizes = [min(_CHUNK, self._num_subsets - first) for first in range(0, self._num_subsets, _CHUNK)]
        drawn = (torch.rand(num_prompts, size, num_seeds, generator=generator) for size in sizes)
        return [numbers.argsort(dim=2) for numbers in drawn]

    def worth(self, policy: Policy, *, num_subsets: int | None = None) -> dict[str, Floats]:
        """What the chosen images are worth: name -> `(P,)` float64.

        Args:
            policy: at most S starts.
            num_subsets: use the first ones only; all of them where missing.
        """
        sums: dict[str, Any] = dict.fromkeys(self._worth, 0.0)
        number = 0
        for orders in self._orders:
            if num_subsets is not None and number >= num_subsets:
                break
            chosen = self._chosen(policy, orders[:, : None if num_subsets is None else num_subsets - number])
            number += chosen.shape[1]
            for name, part in self._worth.items():
                sums[name] = sums[name] + part.gather(1, chosen).sum(dim=1, dtype=torch.float64)
        return {name: (total / number).numpy() for name, total in sums.items()}

    def _chosen(self, policy: Policy, orders: Tensor) -> Tensor:
        """`(P, R)`, the seed of the image that the policy returns."""
        rows = orders[:, :, : policy.num_particles]
        for step, keep in policy.cuts:
            rows = rows.gather(2, self._at(step, rows).topk(min(keep, rows.shape[2]), dim=2, sorted=False).indices)
        best = self._at(-1, rows).argmax(dim=2, keepdim=True)
        return rows.gather(2, best).squeeze(2)

    def _at(self, step: int, rows: Tensor) -> Tensor:
        return self._steps[step].gather(1, rows.flatten(1)).view(rows.shape)
