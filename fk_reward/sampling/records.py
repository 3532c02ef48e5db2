"""What `steer` tells of a run: a record of each scoring step, and how far the run came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fk_reward.sampling.x0_prediction import predict_x0, scheduler_name
from fk_reward.smc.weights import effective_sample_size

NumSteps: TypeAlias = int | Callable[[], int | None] | None
"""How many steps will run; a function is asked at the first step, and says None where it does not know."""


@dataclass(frozen=True)
class SteeringRecord:
    """What happened at one scoring step.

    Attributes:
        step: 0-based index of the scheduler step before which the particles were scored.
        timestep: the scheduler's timestep.
        rewards: `(G, K)` float32, of the predicted clean samples, before resampling.
        log_weights: `(G, K)` float64, un-normalised, after weighing and before resampling; 0 for a search without.
        ess: `(G,)` float64, effective sample size before resampling, in [1, K]; K for a search without weights.
        ancestors: `(G, K')` int64, indices within the group, where K' particles go on; None where all stayed in place.
        level: noise level of the samples that the predictions were made from; None where it is not known.

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
    level: float | None = None


class SteeringRecords(list[SteeringRecord]):
    """The records of a run in the order of time, and how far it came.

    Attributes:
        num_steps: steps that have run.
        sample_steps: samples times steps: one sample through one step counts one, and so does one for which a
            prediction asks the model again.
        log_ratio: `(G * K,)` float64, of the moves since the last scoring step, where a transition gives it. It belongs
            into `Population.finish`.
        expected_steps: steps that should run, for which the scoring steps were placed; None where that is not known.
        last_step: what the last step that ran got; None before the first.
        notes: sentences about this run that a user should know; each was a warning, too.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self._scheduler = scheduler
        self.last_step: StepRecord | None = None
        self.num_steps = 0
        self.sample_steps = 0
        self.log_ratio: Tensor | None = None
        self.expected_steps: int | None = None
        self.notes: list[str] = []

    @property
    def holds_noise(self) -> bool:
        """Whether the run ended before the scheduler's last timestep, so that the samples are not clean yet."""
        if self.last_step is None or scheduler_name(self._scheduler) is None:
            return self.num_steps < (self.expected_steps or 0)
        index = getattr(self._scheduler, "step_index", None)  # of the next step
        if index is not None:
            return index < len(self._scheduler.timesteps)
        return timestep_number(self.last_step.timestep) != timestep_number(self._scheduler.timesteps[-1])

    def last_x0_pred(self) -> Tensor:
        """`(B, C, ...)`, the predicted clean sample of the last step that ran, before its move.

        Raises:
            RuntimeError: when no step ran.
        """
        if self.last_step is None:
            raise RuntimeError("No step has run, so that there is no prediction.")
        return self.last_step.x0_pred(self._scheduler)


@dataclass(frozen=True)
class StepRecord:
    """What a step got.

    Attributes:
        state: of the scheduler, before the step.
        model_output: as `scheduler.step` got it.
        timestep: as `scheduler.step` got it.
        sample: as `scheduler.step` got it.
    """

    state: dict[str, Any]
    model_output: Tensor
    timestep: Any
    sample: Tensor

    def x0_pred(self, scheduler: Any) -> Tensor:
        """Computed when it is asked for: only the last step of a run that ends early needs it."""
        after = dict(vars(scheduler))
        vars(scheduler).update(self.state)
        try:
            return predict_x0(scheduler, self.model_output, self.timestep, self.sample)
        finally:
            vars(scheduler).update(after)


def recorded_weights(record: Mapping[str, Tensor], rewards: Tensor, *, final: bool = False) -> tuple[Tensor, Tensor]:
    """Log-weights and ESS for the trace; of a search without weights those of equal ones.

    Args:
        record: of the population.
        rewards: `(G, K)`, that were scored.
        final: of the finished images, of which a forbidden one (`-inf`) weighs nothing.

    Returns:
        `(G, K)` and `(G,)`, float64.

    Example:
        >>> recorded_weights({}, torch.tensor([[1.0, -torch.inf]]), final=True)[1]
        tensor([1.], dtype=torch.float64)
    """
    equal = torch.zeros(rewards.shape, dtype=torch.float64)
    if final:
        equal = equal.masked_fill(rewards == -torch.inf, -torch.inf)
    log_weights = record.get("log_weights", equal)
    ess = record.get("ess")
    return log_weights, effective_sample_size(log_weights) if ess is None else ess


def timestep_number(timestep: Any) -> float:
    """A timestep as a number; some loops pass one for each row."""
    return float(torch.as_tensor(timestep).flatten()[0])


def length_of_run(scheduler: Any, timestep: Any, *, given: NumSteps) -> int:
    """How many steps will run. Without better knowledge: from the first timestep that is seen to the scheduler's last.

    Args:
        scheduler: after `set_timesteps`.
        timestep: the first that is seen.
        given: what the caller knows.

    Raises:
        ValueError: for fewer than one, and where it cannot be known.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(10)
        >>> length_of_run(scheduler, scheduler.timesteps[4], given=None)
        6
    """
    num_steps = given() if callable(given) else given
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"num_steps should be at least 1, got {num_steps}.")
        return num_steps
    if (begin := getattr(scheduler, "begin_index", None)) is not None:
        return len(scheduler.timesteps) - begin
    numbers = torch.as_tensor(scheduler.timesteps).tolist()
    places = [place for place, number in enumerate(numbers) if number == timestep_number(timestep)]
    if places[:1] == [0] or len(places) == 1:
        return len(numbers) - places[0]
    where = "is not among" if not places else "stands more than once among"
    raise ValueError(
        f"How many steps will run cannot be known: the first timestep, {timestep_number(timestep):g}, {where} the "
        f"{len(numbers)} of scheduler.timesteps. Pass num_steps to steer()."
    )
