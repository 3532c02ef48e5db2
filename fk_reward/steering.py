"""`steer`: run a particle filter inside anyone's sampling loop by intercepting `scheduler.step`."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fk_reward.config import FKSteeringConfig
from fk_reward.particle_exchange import ParticleExchange
from fk_reward.particle_filter import ParticleFilter
from fk_reward.stochasticity import adds_noise_now, require_stochastic
from fk_reward.x0_prediction import predict_x0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SteeringRecord:
    """What happened at one scoring step.

    Attributes:
        step: 0-based index of the scheduler step before which the particles were scored.
        timestep: the scheduler's timestep.
        rewards: `(G, K)` float32, of the predicted clean samples, before resampling.
        log_weights: `(G, K)` float64, un-normalised, after weighing and before resampling.
        ess: `(G,)` float64, effective sample size before resampling, in [1, K].
        ancestors: `(G, K')` int64, indices within the group, where K' particles go on; None where no group was
            resampled.

    Notation used for tensor shapes:
        - G: number of groups (prompts)
        - K: number of particles of a group
    """

    step: int
    timestep: float
    rewards: Tensor
    log_weights: Tensor
    ess: Tensor
    ancestors: Tensor | None


@contextmanager
def steer(
    scheduler: Any,
    particle_filter: ParticleFilter,
    score: Callable[[Tensor], Tensor],
    *,
    step_defaults: dict[str, Any] | None = None,
    callback: Callable[[SteeringRecord], None] | None = None,
    exchange: ParticleExchange | None = None,
) -> Iterator[list[SteeringRecord]]:
    """Steer every call of `scheduler.step` in the body of the `with` statement.

    At each scoring step (`FKSteeringConfig.scoring_steps`) the predicted clean samples are scored, the log-weights
    updated and, if the effective sample size asks for it, ancestors drawn. `sample`, `model_output` and the
    scheduler's own history of past predictions are gathered by the ancestors, then the scheduler makes its move:
    copies of a particle get independent noise at once. The terminal correction is the caller's:
    `particle_filter.weigh(final_rewards, final=True)`. With `final_particles` the batch becomes smaller on the way:
    what `scheduler.step` returns has fewer rows than it got, and the loop has to cope with that.

    The scheduler gets an instance attribute `step` of the same signature, which is removed at the end, also after an
    error.

    Args:
        scheduler: a Diffusers scheduler with stochastic transitions. Unless resampling is off (one particle,
            `num_resamples=0` or `reward_scale=0`), a deterministic one is refused at its first step.
        particle_filter: a fresh `ParticleFilter`; the batch of the loop must hold its G * K particles, group-major.
        score: `x0_pred` `(G * K, C, ...)` to rewards `(G * K,)`.
        step_defaults: arguments for `step` that are filled in where the loop passes none, for instance `{"eta": 1.0}`.
        callback: called with each record as soon as it exists.
        exchange: where the particles of each prompt are spread over processes. The batch of the loop and of `score`
            then holds this process's share of each prompt, and every process runs the same loop.

    Yields:
        The list of records, which grows during the run.

    Raises:
        RuntimeError: when the scheduler is being steered already.
        ValueError: at the first step, for a deterministic scheduler or a batch of the wrong size; for
            `final_particles` with particles in several processes or on a trajectory without a scoring step.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from fk_reward import FKSteeringConfig
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(5)
        >>> particle_filter = ParticleFilter(FKSteeringConfig(num_particles=4, num_resamples=1))
        >>> sample = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> with steer(scheduler, particle_filter, lambda x0: x0.mean(dim=(1, 2, 3))) as records:
        ...     for t in scheduler.timesteps:
        ...         noise_pred = torch.zeros_like(sample)
        ...         sample = scheduler.step(noise_pred, t, sample, eta=1.0, generator=torch.Generator()).prev_sample
        >>> [record.step for record in records]
        [1]
    """
    if "step" in vars(scheduler):
        raise RuntimeError(f"This {type(scheduler).__name__} is being steered already; leave the other steer() first.")
    if exchange is None:
        exchange = ParticleExchange(num_groups=particle_filter.num_groups, num_particles=particle_filter.num_particles)
    if exchange.num_processes > 1 and particle_filter.config.final_particles is not None:
        raise ValueError("final_particles cannot be had with the particles of a prompt in several processes.")
    interceptor = _StepInterceptor(scheduler, particle_filter, score, step_defaults or {}, callback, exchange)

    @functools.wraps(scheduler.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return interceptor(*args, **kwargs)

    scheduler.step = step
    try:
        yield interceptor.records
    finally:
        del scheduler.step


class _StepInterceptor:
    """State of one run: counts the steps, scores and resamples, then lets the scheduler move."""

    def __init__(
        self,
        scheduler: Any,
        particle_filter: ParticleFilter,
        score: Callable[[Tensor], Tensor],
        step_defaults: dict[str, Any],
        callback: Callable[[SteeringRecord], None] | None,
        exchange: ParticleExchange,
    ) -> None:
        self.records: list[SteeringRecord] = []
        self._scheduler = scheduler
        self._filter = particle_filter
        self._score = score
        self._step_defaults = step_defaults
        self._callback = callback
        self._exchange = exchange
        self._original_step = scheduler.step
        self._signature = inspect.signature(scheduler.step)
        self._num_done = 0
        self._pending: list[tuple[int, int]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        for name, value in self._step_defaults.items():
            if bound.arguments.get(name) is None:
                bound.arguments[name] = value
        if self._num_done == 0:
            self._begin(bound.arguments)
        num_survivors = self._due()
        if num_survivors is not None:
            self._weigh_and_resample(bound.arguments, num_survivors)
        self._thin_generators(bound.arguments)
        self._num_done += 1
        return self._original_step(*bound.args, **bound.kwargs)

    def _due(self) -> int | None:
        """How many particles go on when they are scored before this step; None where they are not.

        Of several scoring steps that had to wait for noise only the last one counts.
        """
        if not adds_noise_now(self._scheduler) or self._filter.stopped.all():
            return None
        due = [num_survivors for step, num_survivors in self._pending if step <= self._num_done]
        self._pending = self._pending[len(due) :]
        return due[-1] if due else None

    def _thin_generators(self, arguments: dict[str, Any]) -> None:
        """Leave the generators of the slots that still exist, where the loop has one for each."""
        generators = arguments.get("generator")
        num_first, num_left = self._filter.config.num_particles, self._filter.num_particles
        if num_left < num_first and isinstance(generators, list | tuple) and len(generators) > 1:
            firsts = range(0, len(generators), num_first)
            arguments["generator"] = [generators[first + slot] for first in firsts for slot in range(num_left)]

    def _begin(self, arguments: dict[str, Any]) -> None:
        config = self._filter.config
        if not config.resamples:
            return
        require_stochastic(self._scheduler, eta=arguments.get("eta"))
        num_groups, num_own = self._exchange.num_groups, self._exchange.num_own
        batch_size = arguments["sample"].shape[0]
        if batch_size != num_groups * num_own:
            raise ValueError(
                f"The batch should hold {num_groups} prompts x {num_own} particles = {num_groups * num_own} samples, "
                f"got {batch_size}."
            )
        num_steps = len(self._scheduler.timesteps) - (getattr(self._scheduler, "begin_index", None) or 0)
        steps = config.scoring_steps(num_steps)
        _check_effect(config, num_steps)
        self._pending = list(zip(steps, config.population_sizes(len(steps)), strict=True))

    def _weigh_and_resample(self, arguments: dict[str, Any], num_survivors: int) -> None:
        model_output, timestep, sample = (arguments[name] for name in ("model_output", "timestep", "sample"))
        rewards = self._scored(predict_x0(self._scheduler, model_output, timestep, sample))
        self._filter.weigh(rewards, step=self._num_done)
        log_weights, ess = self._filter.log_weights.clone(), self._filter.ess
        ancestors = self._filter.resample(num_survivors)
        if ancestors is not None:
            take = functools.partial(self._exchange.take, ancestors=ancestors)
            arguments["sample"], arguments["model_output"] = take(sample), take(model_output)
            gather_history(self._scheduler, take, sample)
        self._record(float(timestep), rewards, (log_weights, ess), ancestors)

    def _scored(self, x0_pred: Tensor) -> Tensor:
        try:
            return self._exchange.gather_scores(self._score, x0_pred)
        except ValueError as error:
            raise ValueError(f"At step {self._num_done}: {error}") from error

    def _record(
        self, timestep: float, rewards: Tensor, weights: tuple[Tensor, Tensor], ancestors: Tensor | None
    ) -> None:
        num_groups, num_particles = weights[0].shape
        record = SteeringRecord(
            step=self._num_done,
            timestep=timestep,
            rewards=rewards.detach().to("cpu", torch.float32).view(num_groups, num_particles),
            log_weights=weights[0],
            ess=weights[1],
            ancestors=None if ancestors is None else ancestors.view(num_groups, -1) % num_particles,
        )
        self.records.append(record)
        if self._callback is not None:
            self._callback(record)


def _check_effect(config: FKSteeringConfig, num_steps: int) -> None:
    """Warn where settings that ask for resampling cannot resample anything; refuse a funnel that cannot shrink."""
    if not config.scoring_steps(num_steps):
        if config.final_particles is not None:
            raise ValueError(f"final_particles needs a scoring step, and a trajectory of {num_steps} step has none.")
        logger.warning(
            "A trajectory of %d step has no scoring step, so nothing will be resampled: this is best of %d.",
            num_steps,
            config.num_particles,
        )
    elif config.ess_threshold * config.num_particles <= 1.0 and config.final_particles is None:
        logger.warning(
            "The ESS of %d particles is never below %g of them, so nothing will be resampled: this is best of %d. "
            "Raise ess_threshold (1.0 resamples at every scoring step) or num_particles.",
            config.num_particles,
            config.ess_threshold,
            config.num_particles,
        )


def gather_history(scheduler: Any, take: Callable[[Tensor], Tensor], sample: Tensor) -> None:
    """Gather the scheduler's history by the ancestors: every sample-shaped tensor that it keeps between steps.

    Args:
        scheduler: changed in place.
        take: rows `(B, C, ...)` to the rows of the ancestors.
        sample: `(B, C, ...)`, for its shape.

    Example:
        >>> from types import SimpleNamespace
        >>> scheduler = SimpleNamespace(model_outputs=[None, torch.tensor([[1.0], [2.0]])], sigmas=torch.zeros(2))
        >>> gather_history(scheduler, lambda rows: rows[[1, 1]], torch.zeros(2, 1))
        >>> scheduler.model_outputs[1].flatten()
        tensor([2., 2.])
    """

    def gathered(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == sample.ndim and value.shape == sample.shape:
            return take(value)
        if type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
            return type(value)(gathered(item) for item in value)
        return value

    for name, value in list(vars(scheduler).items()):
        replacement = gathered(value)
        if replacement is not value:
            setattr(scheduler, name, replacement)
