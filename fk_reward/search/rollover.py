"""Rollover budget: each step has a quota of proposals, and what it does not need goes to the next step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch

from fk_reward.search.base import SEARCH_STARTS, Forecast, PlainPopulation, SearchConfig, step_at
from fk_reward.search.budget import largest_within
from fk_reward.value_checks import boolean, ordered_fractions, real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

THRESHOLDS = ("best", "parent")


@runtime_checkable
class Proposing(Protocol):
    """A population that may ask for another draw of the step before, as often as it likes, before it decides.

    At a scoring step `steer` shows it the rewards of the particles as they came, and, while it `wants_more`, those of
    another draw of their last step, for which the denoiser is asked again. Of each particle the draw that was taken
    last goes on; its reward is what `advance` gets.
    """

    @property
    def wants_more(self) -> bool:
        """Whether another draw is wanted."""

    def consider(self, rewards: Tensor, *, step: int) -> Tensor:
        """Look at a draw.

        Args:
            rewards: `(G * K,)`.
            step: index of the scheduler step that is about to be made.

        Returns:
            `(G * K,)` bool, which particles take it; at the first draw of a step all do, whatever is returned.
        """


@dataclass(frozen=True, kw_only=True)
class RolloverBudget:
    """One trajectory that proposes each step until the prediction is better, within a budget that rolls over.

    Rollover budget forcing (RBF) of Kim et al. (2025), arXiv 2503.19385. The best of N starts goes on. Each step then
    is drawn up to its quota of times: the first draw whose predicted clean sample passes the threshold is taken, and
    the draws that are left are added to the quota of the next step; where none passes, the best one is taken. The last
    step with proposals uses up what there is, unless the threshold is a number. A draw costs one call of the denoiser,
    so that a trajectory of T steps costs at most N + (T - 1) Q sample steps, with every step proposing.

    Differently from the paper, quotas are whole numbers that are given, the transition is the pipeline's own (it must
    be stochastic), and the returned image is the finished one, not the last prediction.

    It becomes the plain pipeline where one draw is the quota and there is one start (bit for bit), or the threshold is
    -inf; and the greedy choice among Q proposals of each step, the hard form of SVDD, where it is inf. Without a stated
    law: an optimiser.

    The number of draws differs from prompt to prompt, so that it runs one prompt at a time. The denoiser is asked
    again, which is there for the pipelines that have a look-ahead.

    Attributes:
        num_particles: N, starts of the prompt, of which the best goes on. At least 1.
        num_proposals: Q, quota of each step. At least 1.
        threshold: what a prediction's reward has to be above: `"best"`, the best reward that was taken before (the
            paper's rule), `"parent"`, that of the particle that it was drawn from, or a number, which is a reward that
            is good enough.
        start: first step with proposals, as a fraction of the trajectory in [0, 1]: at the step before, the starts are
            scored, and the best goes on.
        stop: last one, as a fraction of the trajectory in [start, 1].
        abstain: return a black image where the finished image is forbidden (a reward of -inf); False raises an error
            instead.

    Example:
        >>> forecast = RolloverBudget(num_particles=4, num_proposals=3).population().forecast(10)
        >>> sum(forecast.steps), forecast.extra_steps  # 4 + 9, and two more for each step but the first
        (13, 18)
    """

    default_eta: ClassVar[float | None] = 1.0
    set_by_budget: ClassVar[tuple[str, ...]] = ("num_proposals",)
    one_prompt: ClassVar[bool] = True

    num_particles: int = 4
    num_proposals: int = 4
    threshold: float | str = "best"
    start: float = 0.0
    stop: float = 1.0
    abstain: bool = False

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {
            "num_particles": whole_number("num_particles", self.num_particles, minimum=1),
            "num_proposals": whole_number("num_proposals", self.num_proposals, minimum=1),
            **ordered_fractions(start=self.start, stop=self.stop),
        }
        if self.threshold not in THRESHOLDS and self.threshold not in (math.inf, -math.inf):
            numbers["threshold"] = real_number("threshold", self.threshold, note=f"or one of {', '.join(THRESHOLDS)}")
        boolean("abstain", self.abstain)
        vars(self).update(numbers)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> RolloverPopulation:
        """The trajectory of one call.

        Raises:
            ValueError: for several prompts.
        """
        if num_groups != 1:
            raise ValueError(
                f"RolloverBudget draws a step as often as its prompt needs, and runs one prompt at a time; got "
                f"{num_groups}: call the pipeline once for each."
            )
        return RolloverPopulation(self)

    def within_budget(self, price: Callable[[SearchConfig], int], budget: int) -> SearchConfig | None:
        """The largest quota that a budget pays for; where there is not enough for one, one with fewer starts."""
        fitted = largest_within(lambda number: replace(self, num_proposals=number), price, budget)
        plain = replace(self, num_proposals=1)
        return fitted or largest_within(lambda number: replace(plain, num_particles=number), price, budget)


class RolloverPopulation(PlainPopulation):
    """The starts, then one particle.

    Args:
        config: quota and threshold.

    Example:
        >>> population = RolloverBudget(num_particles=1, num_proposals=3).population()
        >>> population.begin(4)
        >>> for step, rewards in ((0, [0.5]), (1, [0.4, 0.6]), (2, [0.3, 0.2, 0.1, 0.7])):
        ...     taken = [bool(population.consider(torch.tensor([reward]), step=step)) for reward in rewards]
        ...     print(step, taken, population.wants_more)
        ...     population.advance(torch.tensor([max(rewards)]), step=step)
        0 [True] False
        1 [True, True] False
        2 [True, False, False, True] False
    """

    def __init__(self, config: RolloverBudget) -> None:
        super().__init__(config.num_particles, abstain=config.abstain)
        self.wants_more = False
        self._config = config
        self._best = self._parent = -math.inf
        self._quota = config.num_proposals
        self._num_made, self._kept, self._passed = 0, -math.inf, False
        self._num_draws = self._num_passed = self._num_steps = 0

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        """The step at which the best start is chosen, and those with proposals; none where there is no such step."""
        config = self._config
        # the first proposals are those of the first step, and the last are scored before the last step
        first, last = (min(step_at(f, num_steps), num_steps - 1) for f in (config.start, config.stop))
        first = max(first, 1)
        return dict.fromkeys(range(first - 1, last + 1), 1) if first <= last else {}

    def forecast(self, num_steps: int) -> Forecast:
        """By `sizes`, with all proposals."""
        sizes = sorted(self.sizes(num_steps))
        plain = Forecast.of(num_steps, self.first_particles, dict.fromkeys(sizes, 1))
        num_draws = len(sizes[1:]) * self._config.num_proposals
        return replace(
            plain,
            scorings=(*plain.scorings[:1], *(1,) * num_draws),
            extra_steps=num_draws - len(sizes[1:]),
        )

    def begin(self, num_steps: int) -> str | None:
        """Place the scoring steps; a sentence where there is no step to propose."""
        super().begin(num_steps)
        if not self._sizes:
            short = f"A trajectory of {num_steps} steps has no step to propose: this is best of {self.num_particles}."
            return f"{short} {SEARCH_STARTS}"
        return None

    def consider(self, rewards: Tensor, *, step: int) -> Tensor:
        """Take the draw where it is the best of this step; another is wanted while none passes and there is a quota."""
        reward = float(self.grouped(rewards, step=step).max())
        if step == min(self._sizes):  # the starts, of which `advance` takes the best
            return torch.ones(len(rewards), dtype=torch.bool)
        is_first = self._num_made == 0
        taken = is_first or reward > self._kept
        self._kept = reward if taken else self._kept
        self._num_made += 1
        self._passed = self._passed or reward > self._threshold()
        goes_on = self._passed and not (step == max(self._sizes) and self._config.threshold in THRESHOLDS)
        self.wants_more = not goes_on and self._num_made < self._quota
        return torch.full((len(rewards),), taken)

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """The best start goes on alone; later the budget that is left rolls over."""
        self.refuse_ratio(log_ratio)
        grouped = self.grouped(rewards, step=step)
        self._parent = float(grouped.max())
        self._best = max(self._best, self._parent)
        if self._num_made:
            self._num_steps, self._num_draws = self._num_steps + 1, self._num_draws + self._num_made
            self._num_passed += self._passed
            self._quota += self._config.num_proposals - self._num_made
            self._num_made, self._kept, self._passed, self.wants_more = 0, -math.inf, False, False
        return None if self.num_particles == 1 else self.moved(self.best(grouped, 1))

    def finish(self, rewards: Tensor, *, step: int | None = None, log_ratio: Tensor | None = None) -> None:
        """As of a `PlainPopulation`; and note what the budget went to."""
        super().finish(rewards, step=step, log_ratio=log_ratio)
        if self._num_steps:
            self._notes.append(
                f"{self._num_draws} draws for {self._num_steps} steps, {self._num_passed} of which found a better one."
            )

    def _threshold(self) -> float:
        rules = {"best": self._best, "parent": self._parent}
        threshold = self._config.threshold
        return rules[threshold] if isinstance(threshold, str) else float(threshold)
