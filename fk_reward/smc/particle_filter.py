"""The particle filter: rewards in, ancestors and log-weights out. It knows nothing of images or of Diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from fk_reward.smc.potentials import POTENTIALS, PathStatistics
from fk_reward.smc.resampling import RESAMPLERS, flat_indices, systematic
from fk_reward.smc.reward_scale import CARD, known_reward_scale, tempered_reward_scale
from fk_reward.smc.weights import effective_sample_size, log_mean_increment, normalized_weights
from fk_reward.value_checks import real_number

if TYPE_CHECKING:
    from torch import Generator, Tensor


class FilterSettings(Protocol):
    """The settings that a particle filter reads; `FKSteeringConfig` has and documents them."""

    @property
    def num_particles(self) -> int: ...  # noqa: D102
    @property
    def potential(self) -> str: ...  # noqa: D102
    @property
    def reward_scale(self) -> float | str: ...  # noqa: D102
    @property
    def ess_threshold(self) -> float: ...  # noqa: D102
    @property
    def resampling(self) -> str: ...  # noqa: D102
    @property
    def selection(self) -> str: ...  # noqa: D102
    @property
    def target_ess(self) -> float: ...  # noqa: D102
    @property
    def stop_reward(self) -> float | None: ...  # noqa: D102
    @property
    def abstain(self) -> bool: ...  # noqa: D102


class ParticleFilter:
    """Weights of G independent populations of K particles, with adaptive resampling.

    At each scoring step call `weigh` with the rewards of the predicted clean samples, then `resample`. At the end
    call `weigh` with the rewards of the finished samples and `final=True`: the terminal correction makes the weighted
    particles a sample of `p(x) exp(reward_scale * r(x))`, whatever the potential. All numbers stay in the log domain,
    in float64 on the CPU.

    A finished sample of reward `-inf` is forbidden: its weight is zero, at any `reward_scale`. On a prediction `-inf`
    says less, because a bad prediction can become a good sample: it counts as the lowest finite reward of its group at
    that step minus `1 / reward_scale`. Where no prediction of a group is finite, the step says nothing about it. The
    terminal correction takes all of this back, so that the target stays exact.

    Source: Chopin and Papaspiliopoulos (2020), chapter 10, on particle filtering with adaptive resampling; the
    potentials are those of Singhal et al. (2025), arXiv 2501.06848.

    Args:
        config: settings, such as an `FKSteeringConfig`.
        num_groups: G, number of prompts. Groups never exchange particles.
        generator: source of the randomness, on the CPU: one for all groups, or one for each, so that the result of a
            group does not depend on the others. A new one with seed 0 when missing.
        spread: standard deviation of the reward within a group, as its card states it; `"card"` takes lambda from
            it, and it bounds `"auto"` (`fk_reward.smc.reward_scale`). None where it is not known: then `"card"` is
            `"auto"`.

    Attributes:
        log_weights: `(G, K)` float64, un-normalised; `-inf` for a forbidden sample.
        log_evidence: `(G,)` float64, estimate of `log E_p[exp(reward_scale * r(x))]` once the final rewards are in. No
            estimate where lambda is tempered by the rewards that it weighs, as `reward_scale="auto"` does.
        reward_scale: `(G,)` float64, the lambda of each group; with `"auto"` it is 0 until the first rewards that
            differ, and later rewards can only lower it.
        stopped: `(G,)` bool, groups that `config.stop_reward` has excused from weighing and resampling.
        abstained: `(G,)` bool, groups of which every finished sample is forbidden; only with `config.abstain`.

    Example:
        >>> from fk_reward import FKSteeringConfig
        >>> particle_filter = ParticleFilter(FKSteeringConfig(num_particles=3, reward_scale=10.0))
        >>> particle_filter.weigh(torch.tensor([0.0, 2.0, 0.0]))
        >>> particle_filter.resample()
        tensor([1, 1, 1])
        >>> particle_filter.weigh(torch.tensor([2.0, 2.5, -torch.inf]), final=True)
        >>> particle_filter.select(1)
        tensor([[1]])
    """

    def __init__(
        self,
        config: FilterSettings,
        num_groups: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> None:
        if num_groups < 1:
            raise ValueError(f"num_groups should be at least 1, got {num_groups}.")
        self.config = config
        self.num_groups = num_groups
        self._spread = spread
        self._generators = one_per_group(generator, num_groups)
        self._path = PathStatistics.initial(num_groups, config.num_particles)
        self._applied = torch.zeros_like(self._path.last)
        self._final_rewards: Tensor | None = None
        self._num_floored = torch.zeros(num_groups, dtype=torch.int64)
        self._repeated: dict[int, int] = {}
        self.log_weights = torch.zeros_like(self._path.last)
        self.log_evidence = torch.zeros(num_groups, dtype=torch.float64)
        self.stopped = torch.zeros(num_groups, dtype=torch.bool)
        self.abstained = torch.zeros(num_groups, dtype=torch.bool)
        scale = known_reward_scale(config.reward_scale, spread=spread)
        self._tempers = scale is None
        self.reward_scale = torch.full((num_groups,), scale or 0.0, dtype=torch.float64)

    @property
    def num_particles(self) -> int:
        """K, the particles of one group; fewer than at the beginning once `resample` has left fewer."""
        return self.log_weights.shape[1]

    @property
    def weights(self) -> Tensor:
        """`(G, K)` float64, normalised within each group."""
        return normalized_weights(self.log_weights)

    @property
    def ess(self) -> Tensor:
        """`(G,)` float64, effective sample size of each group, in [1, K]."""
        return effective_sample_size(self.log_weights)

    @property
    def notes(self) -> list[str]:
        """Sentences about this run that its user must know: what `-inf` meant, what an evidence is not.

        Example:
            >>> from fk_reward import FKSteeringConfig
            >>> ParticleFilter(FKSteeringConfig(reward_scale="auto")).notes[0][:43]
            "reward_scale='auto' chose lambda by the rew"
        """
        notes = []
        if self._tempers:
            why = "The card of the reward states no spread: " if self.config.reward_scale == CARD else ""
            notes.append(
                f"{why}reward_scale='auto' chose lambda by the rewards that it then weighed, so log_evidence is no "
                "estimate of log E[exp(lambda r)]: give a number where the evidence matters."
            )
        if self._num_floored.any():
            notes.append(
                f"{int(self._num_floored.sum())} predictions of {_prompts(self._num_floored > 0)} had a reward of "
                "-inf. On a prediction it counts as the lowest finite reward of its prompt at that step minus "
                "1/reward_scale, and where none is finite the step is skipped; only on a finished image it forbids."
            )
        for group, num_allowed in self._repeated.items():
            notes.append(
                f"Of the {self.num_particles} finished images of prompt {group}, {num_allowed} are allowed (the others "
                "have a reward of -inf), so that images repeat."
            )
        if self.abstained.any():
            notes.append(_nothing_allowed(self.abstained))
        return notes

    def weigh(self, rewards: Tensor, *, final: bool = False, step: int | None = None, weight: float = 1.0) -> None:
        """Add the log-potentials of these rewards to the log-weights.

        Args:
            rewards: `(G * K,)`, group-major, finite or `-inf`: of the predicted clean samples, or of the finished ones
                if `final`.
            final: apply the terminal correction instead of the potential. Nothing can be weighed afterwards.
            step: scheduler step, for the error message.
            weight: beta of this step, which the potential gets (`fk_reward.smc.potentials`); finite and at least 0. Not
                used if `final`: the terminal correction takes back what any weights have added.

        Raises:
            ValueError: wrong shape; a reward that is NaN or `+inf` (the message names prompt, particle and step); final
                rewards of a group that are all `-inf`, unless `config.abstain`; a weight below 0.
            RuntimeError: when the final rewards have been weighed already.
        """
        if self._final_rewards is not None:
            raise RuntimeError("The final rewards have been weighed; use a new ParticleFilter for another run.")
        grouped = grouped_rewards(rewards, self.num_groups, self.num_particles, step=step)
        weight = real_number("weight", weight, low=0.0)
        if final:
            require_allowed(grouped, abstain=self.config.abstain)
            self.abstained = (grouped == -torch.inf).all(1)
            self._final_rewards = grouped
        if self._tempers:
            self._temper(grouped, final=final)
        cumulative = grouped if final else self._accumulated(grouped, weight)
        scaled = self.reward_scale[:, None] * cumulative
        scaled = scaled.masked_fill(cumulative == -torch.inf, -torch.inf)  # also where lambda is 0 and 0 * inf is NaN
        self._add(scaled - self._applied)
        if self.config.stop_reward is not None:
            self.stopped |= grouped.amax(1) >= self.config.stop_reward

    def correct(self, log_ratio: Tensor) -> None:
        """Add the log-ratio of target over proposal density of moves that were not the model's own.

        It is no potential: the terminal correction does not take it back.

        Args:
            log_ratio: `(G * K,)`, group-major, finite or `-inf`.
        """
        log_ratio = log_ratio.detach().to("cpu", torch.float64).view_as(self.log_weights)
        self.log_evidence = self.log_evidence + log_mean_increment(self.log_weights, log_ratio)
        self.log_weights = self.log_weights + log_ratio

    def resample(self, num_left: int | None = None) -> Tensor | None:
        """Draw ancestors in each group whose ESS is below the threshold; its log-weights are then 0 again.

        Weights that are all equal are left alone, at any threshold: resampling could only add variance. So are the
        groups that have stopped.

        Args:
            num_left: K', how many particles of each group go on, at most K; where they are fewer, every group is
                resampled, whatever its ESS. K when missing.

        Returns:
            `(G * K',)` int64, flat indices of the ancestors, group-major; None where no group was resampled.
        """
        size = self.num_particles if num_left is None else num_left
        groups = self._groups_to_resample(size)
        if not groups:
            return None
        ancestors = torch.arange(size).repeat(self.num_groups, 1)
        resampler = RESAMPLERS[self.config.resampling]
        for group in groups:
            ancestors[group] = resampler(self.log_weights[group], size, self._generators[group])
        # before the weights are gathered, after which num_particles is K'
        flat = flat_indices(ancestors, self.num_particles)
        self._path = self._path.gather(ancestors)
        # what was applied goes with the particle: the terminal correction takes it back, also after resampling
        self._applied = self._applied.gather(1, ancestors)
        self.log_weights = self.log_weights.gather(1, ancestors)
        # equal again; the evidence of the step is in log_evidence already
        self.log_weights[groups] = 0.0
        return flat

    def _groups_to_resample(self, size: int) -> list[int]:
        if not 1 <= size <= self.num_particles:
            raise ValueError(f"num_left should be in [1, {self.num_particles}], got {size}.")
        if size < self.num_particles:
            return list(range(self.num_groups))
        # at 1.0 always: the ESS of almost equal weights rounds to K, which is not below K
        below = (self.ess < self.config.ess_threshold * self.num_particles) | (self.config.ess_threshold == 1.0)
        unequal = self.log_weights.amax(1) > self.log_weights.amin(1)
        return (below & unequal & ~self.stopped).nonzero().flatten().tolist()

    def select(self, num_selected: int) -> Tensor:
        """Final particles to return, by `config.selection`.

        Args:
            num_selected: n, between 1 and K.

        Returns:
            `(G, n)` int64, indices within the group: of `"best"` highest reward first; of `"sample"` in a random order,
            so that each of them follows the target, the first one, too. `"sample"` can name a particle several times;
            so does `"best"` where fewer than n are allowed. A forbidden particle is named only for a group that has
            abstained.

        Raises:
            RuntimeError: before `weigh(..., final=True)`.
        """
        rewards = self._rewards_at_the_end()
        if not 1 <= num_selected <= self.num_particles:
            raise ValueError(f"num_selected should be in [1, {self.num_particles}], got {num_selected}.")
        best_first = rewards.argsort(dim=1, descending=True, stable=True)
        by_weight = self.config.selection == "sample"
        drawn = self._drawn_places(num_selected) if by_weight else self._best_places(num_selected)
        return best_first.gather(1, drawn)

    def _best_places(self, num_selected: int) -> Tensor:
        """`(G, n)` places in the order of the rewards: the first n; where fewer are allowed, those repeat."""
        num_allowed = (self._rewards_at_the_end() > -torch.inf).sum(1)
        num_allowed = num_allowed.where(num_allowed > 0, self.num_particles)
        self._repeated = {g: n for g, n in enumerate(num_allowed.tolist()) if n < num_selected}
        return (torch.arange(num_selected) % num_allowed[:, None]).sort(dim=1).values

    def _drawn_places(self, num_selected: int) -> Tensor:
        """`(G, n)` places in the order of the rewards, drawn with replacement by the weights.

        Without replacement the draws would drift towards the untilted law: all K of K are as they were proposed.
        Systematic resampling draws each particle `floor(n W_k)` or `ceil(n W_k)` times, which repeats the least; it
        goes by their order, which is shuffled afterwards, since only some of them may be used.
        """
        best_first = self._rewards_at_the_end().argsort(dim=1, descending=True, stable=True)
        ordered = self.log_weights.gather(1, best_first)
        places = torch.arange(num_selected).repeat(self.num_groups, 1)
        for group in (~self.abstained).nonzero().flatten().tolist():
            drawn = systematic(ordered[group], num_selected, self._generators[group])
            places[group] = drawn[torch.randperm(num_selected, generator=self._generators[group])]
        return places

    def _accumulated(self, grouped: Tensor, weight: float) -> Tensor:
        """Sum of the increments so far, `(G, K)` in units of the reward, with those of these predictions."""
        allowed = grouped > -torch.inf
        scored = ~self.stopped & allowed.any(1)
        self._num_floored += (~allowed & ~self.stopped[:, None]).sum(1)
        finite = self._floored(grouped)
        path = replace(self._path, weight=weight)
        increments = POTENTIALS[self.config.potential](finite, path).masked_fill(~scored[:, None], 0.0)
        self._path = path.update(finite, increments, groups=scored)
        return self._path.increments

    def _floored(self, grouped: Tensor) -> Tensor:
        """Rewards with a finite number for `-inf`: e times less likely than the lowest finite one of the group.

        The number may depend on the other particles: the increment that it gives is taken back as it was given. In a
        group without a finite reward it stays infinite, and is not used.
        """
        forbidden = grouped == -torch.inf
        lowest = grouped.masked_fill(forbidden, torch.inf).amin(1)
        margin = torch.where(self.reward_scale > 0, 1.0 / self.reward_scale, 0.0)
        return torch.where(forbidden, (lowest - margin)[:, None], grouped)

    def _temper(self, grouped: Tensor, *, final: bool) -> None:
        """Choose lambda at the first rewards that differ; lower it where later ones differ more."""
        for group in range(self.num_groups):
            scores = grouped[group][grouped[group] > -torch.inf]
            if len(scores) < 2 or scores.amax() == scores.amin() or (self.stopped[group] and not final):
                continue
            scale = tempered_reward_scale(scores, self.config.target_ess * len(scores), spread=self._spread)
            chosen = float(self.reward_scale[group])
            self.reward_scale[group] = min(scale, chosen) if chosen > 0 else scale

    def _rewards_at_the_end(self) -> Tensor:
        if self._final_rewards is None:
            raise RuntimeError("select() needs the final rewards: call weigh(rewards, final=True) first.")
        return self._final_rewards

    def _add(self, log_increments: Tensor) -> None:
        self.log_evidence = self.log_evidence + log_mean_increment(self.log_weights, log_increments)
        self.log_weights = self.log_weights + log_increments
        self._applied = self._applied + log_increments


def one_per_group(generator: Generator | Sequence[Generator] | None, num_groups: int) -> list[Generator]:
    """Sources of randomness, one for each group.

    Args:
        generator: one, which all groups then share, or one for each; None for a new one with seed 0.
        num_groups: G.

    Raises:
        ValueError: for another number of them.

    Example:
        >>> len(one_per_group(None, 3))
        3
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if isinstance(generator, torch.Generator):
        return [generator] * num_groups
    if len(generator) != num_groups:
        raise ValueError(
            f"generator should be one torch.Generator, or one for each of {num_groups} groups, got {len(generator)}."
        )
    return list(generator)


def grouped_rewards(rewards: Tensor, num_groups: int, num_particles: int, *, step: int | None = None) -> Tensor:
    """Check rewards, and bring them to one row for each group.

    Args:
        rewards: `(G * K,)`, group-major.
        num_groups: G.
        num_particles: K.
        step: scheduler step, for the error message.

    Returns:
        `(G, K)` float64 on the CPU, a copy; finite or `-inf`.

    Raises:
        ValueError: wrong shape; a reward that is NaN or `+inf` (the message names prompt, particle and step).

    Example:
        >>> grouped_rewards(torch.ones(4), 2, 2).shape
        torch.Size([2, 2])
    """
    expected = (num_groups * num_particles,)
    if tuple(rewards.shape) != expected:
        raise ValueError(
            f"rewards should be of shape {expected} ({num_groups} prompts x {num_particles} particles, prompt-major), "
            f"got {tuple(rewards.shape)}."
        )
    grouped = rewards.detach().to("cpu", torch.float64, copy=True).view(num_groups, num_particles)
    bad = (torch.isnan(grouped) | (grouped == torch.inf)).nonzero()
    if len(bad):
        group, particle = bad[0].tolist()
        at_step = "" if step is None else f" at step {step}"
        raise ValueError(
            f"The reward of prompt {group}, particle {particle}{at_step} is {grouped[group, particle].item()}; "
            "rewards should be finite, or -inf for what is forbidden. Check the reward model's precision and the "
            "decoded image."
        )
    return grouped


def require_allowed(grouped: Tensor, *, abstain: bool) -> str | None:
    """Raise where every finished image of a group is forbidden, unless the run abstains there.

    Args:
        grouped: `(G, K)`, final rewards.
        abstain: whether such a group is accepted.

    Returns:
        A sentence about such groups; None without one.

    Raises:
        ValueError: the message names the groups.

    Example:
        >>> require_allowed(torch.tensor([[-torch.inf, 1.0]]), abstain=False)
    """
    forbidden = (grouped == -torch.inf).all(1)
    if not forbidden.any():
        return None
    if not abstain:
        raise ValueError(
            f"All {grouped.shape[1]} finished images of {_prompts(forbidden)} have a reward of -inf, which "
            "forbids them, so that none can be returned. Use more particles, a reward with a finite lowest score, "
            "or abstain=True, which returns black images for such a prompt."
        )
    return _nothing_allowed(forbidden)


def _nothing_allowed(forbidden: Tensor) -> str:
    return f"All finished images of {_prompts(forbidden)} have a reward of -inf: none is returned."


def _prompts(groups: Tensor) -> str:
    """Text that names the groups of a mask `(G,)`."""
    numbers = groups.nonzero().flatten().tolist()
    return f"prompt {numbers[0]}" if len(numbers) == 1 else f"prompts {', '.join(map(str, numbers))}"
