"""Choose a policy on recorded trajectories: cuts that beat best of N on prompts other than those they were found on.

The candidates grow cut by cut, and each is improved by small moves. How many cuts there should be, and whether there
should be any, is decided by cross-validation over prompts: the more candidates, the more of their lead is luck.

Letters of shapes: P prompts, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fk_reward.search.replay.policies import Policy, Prices, Replayer
from fk_reward.search.replay.records import Floats, mean_and_error

MAX_CUTS = 4
"""The most cuts; on recorded rewards of FLUX.1-dev and SDXL a fifth one gained nothing on other prompts."""
MIN_CORRELATION = 0.2
"""A prediction whose rank correlation with the finished reward is not surely above this decides nothing."""
GUARD = 4.0
"""A policy has to be above best of N by so many standard errors of its cross-validated gain.

The validation is kind to the policies, which were found on all of its prompts: with 2, PickScore on SDXL at a budget of
16 images had a policy that lost .02 on the other prompts. The 4 was set with that result in view, so that the other
prompts of those records are no independent check of it.
"""
NUM_FOLDS = 5

_BEAM = 8  # candidates that are improved, of each number of cuts
_ROUNDS = 12
_COARSE, _FINE = 48, 256  # random subsets of the seeds: to rank the candidates, and to compare the good ones
_RATIOS = (0.85, 0.7, 0.55, 0.4, 0.25)  # how many go on after a new cut
_MOST_KEEPS = 24


@dataclass(frozen=True)
class Choice:
    """A policy, and what it was chosen by.

    Attributes:
        policy: the chosen one.
        gain: mean cross-validated gain over best of N, among the prompts of the choice; 0 for best of N.
        error: its standard error over prompts.
        num_candidates: policies that were compared.
    """

    policy: Policy
    gain: float
    error: float
    num_candidates: int


def choose_policy(
    replayer: Replayer,
    budget: float,
    *,
    prices: Prices,
    steps: Sequence[int],
    clusters: NDArray[np.int64],
) -> Choice:
    """The policy to use: best of N, or cuts that are surely above it.

    Args:
        replayer: of the prompts of the choice.
        budget: what a policy may cost.
        prices: of its parts.
        steps: where cuts may be.
        clusters: `(P,)`, as `RewardRecords.clusters`: prompts of one text are in one fold.

    Raises:
        ValueError: a budget for more starts than recorded seeds, or for none.
    """
    candidates = Candidates(replayer, budget, prices=prices, steps=steps)
    classes = [candidates.of_cuts(number) for number in range(1, MAX_CUTS + 1)]
    found = [(list(gains), np.stack([*gains.values()])) for gains in classes if gains]
    plain = Choice(candidates.plain, 0.0, 0.0, candidates.num_seen)
    if not found or len(np.unique(clusters)) < NUM_FOLDS:
        return plain
    validated = [cross_validated(gains, clusters) for _, gains in found]
    best = max(range(len(found)), key=lambda number: validated[number].mean())
    policies, gains = found[best]
    gain, error = mean_and_error(validated[best], clusters)
    if gain <= GUARD * error:
        return plain
    return Choice(policies[int(gains.mean(axis=1).argmax())], gain, error, candidates.num_seen)


def cross_validated(gains: Floats, clusters: NDArray[np.int64]) -> Floats:
    """The gain at each prompt of the candidate that is best on the prompts of other folds.

    Args:
        gains: `(C, P)`.
        clusters: `(P,)`.

    Returns:
        `(P,)`.

    Example:
        >>> lucky = np.eye(10)  # each candidate gains at one prompt: all of it is luck
        >>> float(cross_validated(lucky, np.arange(10)).sum())
        0.0
    """
    folds = np.unique(clusters, return_inverse=True)[1] % NUM_FOLDS
    found = np.empty(gains.shape[1])
    for fold in range(NUM_FOLDS):
        inside = folds == fold
        found[inside] = gains[gains[:, ~inside].mean(axis=1).argmax(), inside]
    return found


class Candidates:
    """The policies that a budget allows, as far as they are worth a look.

    Args:
        replayer: of the prompts of the choice.
        budget: what a policy may cost.
        prices: of its parts.
        steps: where cuts may be.

    Attributes:
        plain: best of N.
    """

    def __init__(self, replayer: Replayer, budget: float, *, prices: Prices, steps: Sequence[int]) -> None:
        self._replayer, self._budget, self._prices = replayer, budget, prices
        _, self._num_seeds, self._num_steps = replayer.shape
        self._steps = sorted(steps)
        number = prices.most_starts((), budget, self._num_steps)
        if not 1 <= number <= self._num_seeds:
            raise ValueError(
                f"The budget should pay for 1 to {self._num_seeds} whole images (the recorded seeds of a prompt), and "
                f"pays for {number}."
            )
        self.plain = Policy(number)
        self._base = replayer.worth(self.plain, num_subsets=_FINE)["own"]
        self._coarse: dict[Policy, float] = {}
        self._fine: dict[Policy, Floats] = {}
        self._beam = [self.plain]

    @property
    def num_seen(self) -> int:
        """How many were looked at."""
        return len(self._coarse)

    def of_cuts(self, number: int) -> dict[Policy, Floats]:
        """Good policies with one cut more than at the call before, and their gains over best of N, `(P,)` each."""
        grown = self._good(self._grown(policy) for policy in self._beam)
        for _ in range(_ROUNDS):
            better = self._good([grown, *(self._moved(policy) for policy in grown)])
            if better == grown:
                break
            grown = better
        self._beam = grown
        return {policy: gain for policy, gain in self._fine.items() if len(policy.cuts) == number}

    def _good(self, groups: Iterable[Iterable[Policy]]) -> list[Policy]:
        """The best of some policies: many are ranked roughly, and the first of them again."""
        policies = list(dict.fromkeys(itertools.chain.from_iterable(groups)))
        first = sorted(policies, key=self._rough, reverse=True)[: 2 * _BEAM]
        return sorted(first, key=lambda policy: self._gain(policy).mean(), reverse=True)[:_BEAM]

    def _rough(self, policy: Policy) -> float:
        if policy not in self._coarse:
            self._coarse[policy] = self._replayer.worth(policy, num_subsets=_COARSE)["own"].mean()
        return self._coarse[policy]

    def _gain(self, policy: Policy) -> Floats:
        if policy not in self._fine:
            self._fine[policy] = self._replayer.worth(policy, num_subsets=_FINE)["own"] - self._base
        return self._fine[policy]

    def _grown(self, policy: Policy) -> Iterator[Policy]:
        """With one more cut."""
        taken = dict(policy.cuts)
        for step in (step for step in self._steps if step not in taken):
            before = min((keep for place, keep in policy.cuts if place < step), default=policy.num_particles)
            # the first cut frees the budget for more starts, so that more than half of them can be dropped
            ratios = _RATIOS if policy.cuts else np.linspace(1.0, 1 / before, min(before, _MOST_KEEPS))
            for keep in {max(1, round(before * ratio)) for ratio in ratios}:
                yield from self._with((*policy.cuts, (step, keep)))

    def _moved(self, policy: Policy) -> Iterator[Policy]:
        """With one cut a little elsewhere."""
        for place, (step, keep) in enumerate(policy.cuts):
            others = policy.cuts[:place] + policy.cuts[place + 1 :]
            size = max(1, round(keep * 0.1))
            keeps = {keep + move for move in (-2 * size, -size, 0, size, 2 * size) if keep + move >= 1}
            for new_step, new_keep in itertools.product((step - 2, step - 1, step, step + 1, step + 2), keeps):
                yield from self._with((*others, (new_step, new_keep)))

    def _with(self, cuts: tuple[tuple[int, int], ...]) -> Iterator[Policy]:
        """The policy with these cuts and as many starts as the budget pays for; none where it is no policy."""
        cuts = tuple(sorted(cuts))
        if any(step not in self._steps for step, _ in cuts) or len(dict(cuts)) < len(cuts):
            return
        number = min(self._prices.most_starts(cuts, self._budget, self._num_steps), self._num_seeds)
        sizes = (number, *(keep for _, keep in cuts))
        if all(after < before for before, after in itertools.pairwise(sizes)):
            yield Policy(number, cuts)
