"""The particle filter: rewards in, ancestors and log-weights out. It knows nothing of images or of Diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from fk_reward.config import AUTO, FKSteeringConfig
from fk_reward.potentials import POTENTIALS, PathStatistics
from fk_reward.resampling import RESAMPLERS
from fk_reward.reward_scale import reward_scale_for_ess
from fk_reward.weights import effective_sample_size, log_mean_increment, normalized_weights


class ParticleFilter:
    """Weights of G independent populations of K particles, with adaptive resampling.

    At each scoring step call `weigh` with the rewards of the predicted clean samples, then `resample`. At the end
    call `weigh` with the rewards of the finished samples and `final=True`: the terminal correction makes the weighted
    particles a sample of `p(x) exp(reward_scale * r(x))`, whatever the potential. All numbers stay in the log domain,
    in float64 on the CPU.

    Source: Chopin and Papaspiliopoulos (2020), chapter 10, on particle filtering with adaptive resampling; the
    potentials are those of Singhal et al. (2025), arXiv 2501.06848.

    Args:
        config: settings; the particle filter reads `num_particles`, `potential`, `reward_scale`, `ess_threshold`,
            `resampling`, `selection`, `target_ess` and `stop_reward`.
        num_groups: G, number of prompts. Groups never exchange particles.
        generator: source of the randomness, on the CPU: one for all groups, or one for each, so that the result of a
            group does not depend on the others. A new one with seed 0 when missing.

    Attributes:
        log_weights: `(G, K)` float64, un-normalised.
        log_evidence: `(G,)` float64, estimate of `log E_p[exp(reward_scale * r(x))]` once the final rewards are in.
        reward_scale: `(G,)` float64, the lambda of each group; with `"auto"` it is 0 until the first rewards that
            differ.
        stopped: `(G,)` bool, groups that `config.stop_reward` has excused from weighing and resampling.

    Example:
        >>> particle_filter = ParticleFilter(FKSteeringConfig(num_particles=3, potential="difference"))
        >>> particle_filter.weigh(torch.tensor([0.0, 2.0, 0.0]))
        >>> particle_filter.resample()
        tensor([1, 1, 1])
        >>> particle_filter.weigh(torch.tensor([2.0, 2.5, 2.2]), final=True)
        >>> particle_filter.select(1)
        tensor([[1]])
    """

    def __init__(
        self, config: FKSteeringConfig, num_groups: int = 1, generator: Generator | Sequence[Generator] | None = None
    ) -> None:
        if num_groups < 1:
            raise ValueError(f"num_groups should be at least 1, got {num_groups}.")
        self.config = config
        self.num_groups = num_groups
        self._generators = _one_per_group(generator, num_groups)
        self._path = PathStatistics.initial(num_groups, config.num_particles)
        self._applied = torch.zeros_like(self._path.last)
        self._final_rewards: Tensor | None = None
        self.log_weights = torch.zeros_like(self._path.last)
        self.log_evidence = torch.zeros(num_groups, dtype=torch.float64)
        self.stopped = torch.zeros(num_groups, dtype=torch.bool)
        scale = 0.0 if config.reward_scale == AUTO else float(config.reward_scale)
        self.reward_scale = torch.full((num_groups,), scale, dtype=torch.float64)

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

    def weigh(self, rewards: Tensor, *, final: bool = False, step: int | None = None) -> None:
        """Add the log-potentials of these rewards to the log-weights.

        Args:
            rewards: `(G * K,)`, group-major, finite: of the predicted clean samples, or of the finished ones if
                `final`.
            final: apply the terminal correction in place of the potential. Nothing can be weighed afterwards.
            step: scheduler step, for the error message.

        Raises:
            ValueError: wrong shape, or a reward that is NaN or infinite (the message names prompt, particle and step).
            RuntimeError: when the final rewards have been weighed already.
        """
        if self._final_rewards is not None:
            raise RuntimeError("The final rewards have been weighed; use a new ParticleFilter for another run.")
        grouped = self._checked(rewards, step)
        if final:
            self._final_rewards = grouped
            cumulative = grouped
        else:
            increments = POTENTIALS[self.config.potential](grouped, self._path)
            increments = increments.masked_fill(self.stopped[:, None], 0.0)
            self._path = self._path.update(grouped, increments)
            cumulative = self._path.increments
        if self.config.reward_scale == AUTO:
            self._choose_reward_scale(cumulative)
        self._add(self.reward_scale[:, None] * cumulative - self._applied)
        if self.config.stop_reward is not None:
            self.stopped |= grouped.amax(1) >= self.config.stop_reward

    def resample(self, num_survivors: int | None = None) -> Tensor | None:
        """Draw ancestors in each group whose ESS is below the threshold; its log-weights are then 0 again.

        Weights that are all equal are left alone, at any threshold: resampling could only add variance. So are the
        groups that have stopped.

        Args:
            num_survivors: K', how many particles of each group go on, at most K; where they are fewer, every group is
                resampled, whatever its ESS. K when missing.

        Returns:
            `(G * K',)` int64, flat indices of the ancestors, group-major; None where no group was resampled.
        """
        size = self.num_particles if num_survivors is None else num_survivors
        groups = self._groups_to_resample(size)
        if not groups:
            return None
        ancestors = torch.arange(size).repeat(self.num_groups, 1)
        resampler = RESAMPLERS[self.config.resampling]
        for group in groups:
            ancestors[group] = resampler(self.log_weights[group], size, self._generators[group])
        offsets = self.num_particles * torch.arange(self.num_groups)[:, None]
        self._path = self._path.gather(ancestors)
        self._applied = self._applied.gather(1, ancestors)
        self.log_weights = self.log_weights.gather(1, ancestors)
        self.log_weights[groups] = 0.0
        return (ancestors + offsets).flatten()

    def _groups_to_resample(self, size: int) -> list[int]:
        if not 1 <= size <= self.num_particles:
            raise ValueError(f"num_survivors should be in [1, {self.num_particles}], got {size}.")
        if size < self.num_particles:
            return list(range(self.num_groups))
        below = (self.ess < self.config.ess_threshold * self.num_particles) | (self.config.ess_threshold == 1.0)
        unequal = self.log_weights.amax(1) > self.log_weights.amin(1)
        return (below & unequal & ~self.stopped).nonzero().flatten().tolist()

    def select(self, num_selected: int) -> Tensor:
        """Final particles to return, by `config.selection`.

        Args:
            num_selected: n, between 1 and K.

        Returns:
            `(G, n)` int64, indices within the group, highest reward first.

        Raises:
            RuntimeError: before `weigh(..., final=True)`.
        """
        if self._final_rewards is None:
            raise RuntimeError("select() needs the final rewards: call weigh(rewards, final=True) first.")
        if not 1 <= num_selected <= self.num_particles:
            raise ValueError(f"num_selected should be in [1, {self.num_particles}], got {num_selected}.")
        by_reward = self._final_rewards.argsort(dim=1, descending=True, stable=True)
        if self.config.selection == "best":
            return by_reward[:, :num_selected]
        keys = self.log_weights + torch.stack([_gumbel(self.num_particles, g) for g in self._generators])
        drawn = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, keys.topk(num_selected, dim=1).indices, True)
        return by_reward[drawn.gather(1, by_reward)].view(self.num_groups, num_selected)

    def _checked(self, rewards: Tensor, step: int | None) -> Tensor:
        expected = (self.num_groups * self.num_particles,)
        if tuple(rewards.shape) != expected:
            raise ValueError(
                f"rewards should be of shape {expected} ({self.num_groups} prompts x {self.num_particles} particles, "
                f"prompt-major), got {tuple(rewards.shape)}."
            )
        grouped = rewards.detach().to("cpu", torch.float64).view(self.num_groups, self.num_particles)
        bad = (~torch.isfinite(grouped)).nonzero()
        if len(bad):
            group, particle = bad[0].tolist()
            at_step = "" if step is None else f" at step {step}"
            raise ValueError(
                f"The reward of prompt {group}, particle {particle}{at_step} is {grouped[group, particle].item()}; "
                "rewards should be finite. Check the reward model's precision and the decoded image."
            )
        return grouped

    def _choose_reward_scale(self, cumulative: Tensor) -> None:
        for group in range(self.num_groups):
            scores = cumulative[group]
            if self.reward_scale[group] == 0.0 and scores.amax() > scores.amin():
                self.reward_scale[group] = reward_scale_for_ess(scores, self.config.target_ess * self.num_particles)

    def _add(self, log_increments: Tensor) -> None:
        self.log_evidence = self.log_evidence + log_mean_increment(self.log_weights, log_increments)
        self.log_weights = self.log_weights + log_increments
        self._applied = self._applied + log_increments


def _one_per_group(generator: Generator | Sequence[Generator] | None, num_groups: int) -> list[Generator]:
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if isinstance(generator, Generator):
        return [generator] * num_groups
    if len(generator) != num_groups:
        raise ValueError(
            f"generator should be one torch.Generator, or one for each of {num_groups} groups, got {len(generator)}."
        )
    return list(generator)


def _gumbel(num: int, generator: Generator) -> Tensor:
    uniforms = torch.rand(num, dtype=torch.float64, generator=generator)
    return -torch.log(-torch.log(uniforms.clamp_min(torch.finfo(torch.float64).tiny)))
