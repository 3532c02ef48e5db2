"""`steer`: run a particle filter inside anyone's sampling loop by intercepting `scheduler.step`."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.row_state import RowState, SchedulerHistory
from fk_reward.sampling.step_checks import CopiesCheck, FiniteWatch, bounded_variance, check_reported_x0
from fk_reward.sampling.stochasticity import adds_noise_now, require_matching_steps, require_stochastic, step_signature
from fk_reward.sampling.x0_prediction import predict_x0, scheduler_name
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.smc.particle_filter import ParticleFilter

logger = logging.getLogger(__name__)

_NUM_ROLES = 3

NumSteps: TypeAlias = int | Callable[[], int | None] | None
"""How many steps will run; a function is asked at the first step, and says None where it does not know."""

_HANDED_HISTORY = "old_pred_original_sample"
"""CogVideoX's SDE keeps no history of its own: the loop hands it the prediction of the step before."""


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


class SteeringRecords(list[SteeringRecord]):
    """The records of a run in the order of time, and how far it came.

    Attributes:
        num_steps: steps that have run.
        expected_steps: steps that should run, for which the scoring steps were placed; None where that is not known.
        notes: sentences about this run that a user should know; each was a warning, too.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._last: _Step | None = None
        self.num_steps = 0
        self.expected_steps: int | None = None
        self.notes: list[str] = []

    @property
    def holds_noise(self) -> bool:
        """Whether the run ended before the scheduler's last timestep, so that the samples are not clean yet."""
        if self._last is None or scheduler_name(self._scheduler) is None:
            return self.num_steps < (self.expected_steps or 0)
        index = getattr(self._scheduler, "step_index", None)  # of the next step
        if index is not None:
            return index < len(self._scheduler.timesteps)
        return _number(self._last.timestep) != _number(self._scheduler.timesteps[-1])

    def last_x0_pred(self) -> Tensor:
        """`(B, C, ...)`, the predicted clean sample of the last step that ran, before its move.

        Raises:
            RuntimeError: when no step ran.
        """
        if self._last is None:
            raise RuntimeError("No step has run, so that there is no prediction.")
        return self._last.x0_pred(self._scheduler)


@dataclass(frozen=True)
class _Step:
    """What a step got."""

    state: dict[str, Any]  # of the scheduler, before the step
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


@contextmanager
def steer(  # noqa: PLR0913 (one parameter for each option)
    scheduler: Any,
    particle_filter: ParticleFilter,
    score: Callable[[Tensor], Tensor],
    *,
    step_defaults: dict[str, Any] | None = None,
    callback: Callable[[SteeringRecord], None] | None = None,
    exchange: ParticleExchange | None = None,
    num_steps: NumSteps = None,
    row_states: Sequence[RowState] = (),
) -> Iterator[SteeringRecords]:
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
        num_steps: how many steps the loop will run, or a function that knows it at the first step. None, also from the
            function, for a loop from its first timestep to the end of `scheduler.timesteps`.
        row_states: what else keeps a row for each particle between steps; it is gathered by the ancestors, too.

    Yields:
        The list of records, which grows during the run.

    Raises:
        RuntimeError: when the scheduler is being steered already; at the end, when the loop ran fewer steps than
            expected and more particles than `final_particles` are left.
        ValueError: at the first step, for a deterministic scheduler, a batch of the wrong size or a length that cannot
            be known; for `final_particles` with particles in several processes or on a trajectory without a scoring
            step; when copies of a particle stay equal, and where a subclass of a supported scheduler reports another
            predicted clean sample than it would.

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
        raise ValueError(
            "final_particles does not go with a prompt's particles in several processes: they are shared out evenly."
        )
    interceptor = _StepInterceptor(scheduler, particle_filter, score, step_defaults or {}, callback, exchange)
    interceptor.num_steps = num_steps
    interceptor.row_states = [SchedulerHistory(scheduler), *row_states]

    @functools.wraps(scheduler.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return interceptor(*args, **kwargs)

    step.__signature__ = interceptor.signature  # type: ignore[attr-defined]
    scheduler.step = step
    try:
        with exchange.telling_failures():
            yield interceptor.records
            interceptor.finish()
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
        self.records = SteeringRecords(scheduler)
        self.num_steps: NumSteps = None
        self.row_states: list[RowState] = []
        self._scheduler = scheduler
        self._filter = particle_filter
        self._score = score
        self._step_defaults = step_defaults
        self._callback = callback
        self._exchange = exchange
        self._original_step = scheduler.step
        self.signature = step_signature(scheduler)
        self._roles = _roles(self.signature)
        self._num_done = 0
        self._pending: list[tuple[int, int]] = []
        self._copies = CopiesCheck(scheduler)
        self._x0_pred: Tensor | None = None
        self._finite = FiniteWatch(scheduler)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        for name, value in self._step_defaults.items():
            if name in self.signature.parameters and bound.arguments.get(name) is None:
                bound.arguments[name] = value
        if self._num_done == 0:
            self._begin(bound.arguments)
        num_survivors = self._due()
        if num_survivors is not None:
            self._weigh_and_resample(bound.arguments, num_survivors)
        self._thin_generators(bound.arguments)
        return self._move(bound)

    def _move(self, bound: inspect.BoundArguments) -> Any:
        """Let the scheduler make its step, and look at what it did."""
        state, stochastic = dict(vars(self._scheduler)), adds_noise_now(self._scheduler)
        output = self._call_original(bound)
        if len(self._roles) == _NUM_ROLES:
            self.records._last = _Step(state, *self._inputs(bound.arguments))
        if self._x0_pred is not None:
            self._tell(check_reported_x0(self._scheduler, output, self._x0_pred))
            self._x0_pred = None
        if stochastic:
            generator = bound.arguments.get("generator")
            self._tell(self._copies.check(output[0], step=self._num_done, generator=generator))
        self._num_done += 1
        self.records.num_steps = self._num_done
        return output

    def _call_original(self, bound: inspect.BoundArguments) -> Any:
        if len(self._roles) < _NUM_ROLES:  # a scheduler that is not known here, and may run where nothing is resampled
            return self._original_step(*bound.args, **bound.kwargs)
        model_output, _, sample = self._inputs(bound.arguments)
        self._finite.see("start", sample, step=self._num_done)
        self._finite.see("denoiser", model_output, step=self._num_done)
        with bounded_variance(self._scheduler, bound.arguments.get("eta")):
            output = self._handed_on(bound)
        self._finite.see("scheduler", output[0], step=self._num_done)
        return output

    def _handed_on(self, bound: inspect.BoundArguments) -> Any:
        if self._roles != list(self.signature.parameters)[:_NUM_ROLES]:  # CogVideoX puts its history between them
            return self._original_step(*bound.args, **bound.kwargs)
        others = {name: value for name, value in bound.arguments.items() if name not in self._roles}
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                others |= others.pop(name, {})
        # by name, because a subclass may take what it hands on as **kwargs
        return self._original_step(*self._inputs(bound.arguments), **others)

    def finish(self) -> None:
        """Compare the steps that ran with those that were expected.

        Raises:
            RuntimeError: when a population that should have shrunk has not.
            ValueError: when something became NaN or infinite on the way.
        """
        self._finite.check()
        expected, ran, left = self.records.expected_steps, self._num_done, self._filter.num_particles
        if expected is None:
            return
        final = self._filter.config.final_particles
        if final is not None and left > final:
            raise RuntimeError(
                f"The loop ended after {ran} of {expected} steps with {left} particles of a prompt, and "
                f"final_particles={final} asks for {final}: it was interrupted, or num_steps is wrong."
            )
        if ran < expected:
            missed = [step for step, _ in self._pending]
            self._tell(
                f"The loop ended after {ran} of {expected} steps"
                + (f", before its scoring steps {missed}." if missed else ".")
            )
        elif ran > expected and self._filter.config.resamples:
            self._tell(f"The loop ran {ran} steps, and the scoring steps were placed for {expected}: pass num_steps.")

    def _inputs(self, arguments: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Model output, timestep and sample among the arguments of a step."""
        model_output, timestep, sample = (arguments[name] for name in self._roles)
        return model_output, timestep, sample

    def _tell(self, sentence: str | None) -> None:
        """Warn, and leave the sentence in the notes of the run, once."""
        if sentence is not None and sentence not in self.records.notes:
            logger.warning(sentence)
            self.records.notes.append(sentence)

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
            self.records.expected_steps = self.num_steps() if callable(self.num_steps) else self.num_steps
            return
        require_stochastic(self._scheduler, eta=arguments.get("eta"))
        require_matching_steps(self._scheduler)
        num_groups, num_own = self._exchange.num_groups, self._exchange.num_own
        _, timestep, sample = self._inputs(arguments)
        batch_size = len(sample)
        if batch_size != num_groups * num_own:
            raise ValueError(
                f"The batch should hold {num_groups} prompts x {num_own} particles = {num_groups * num_own} samples, "
                f"got {batch_size}."
            )
        num_steps = _length_of_run(self._scheduler, timestep, given=self.num_steps)
        self.records.expected_steps = num_steps
        steps = config.scoring_steps(num_steps)
        _check_effect(config, num_steps)
        self._pending = list(zip(steps, config.population_sizes(len(steps)), strict=True))

    def _weigh_and_resample(self, arguments: dict[str, Any], num_survivors: int) -> None:
        model_output, timestep, sample = self._inputs(arguments)
        x0_pred = predict_x0(self._scheduler, model_output, timestep, sample)
        for place, tensor in (("start", sample), ("denoiser", model_output), ("prediction", x0_pred)):
            self._finite.see(place, tensor, step=self._num_done)
        self._finite.check()  # before the decoder and the reward get to see it
        rewards = self._scored(x0_pred)
        self._filter.weigh(rewards, step=self._num_done)
        log_weights, ess = self._filter.log_weights.clone(), self._filter.ess
        ancestors = self._filter.resample(num_survivors)
        if ancestors is not None:
            take = functools.partial(self._exchange.take, ancestors=ancestors)
            arguments[self._roles[0]], arguments[self._roles[2]] = take(model_output), take(sample)
            x0_pred = take(x0_pred)
            if arguments.get(_HANDED_HISTORY) is not None:
                arguments[_HANDED_HISTORY] = take(arguments[_HANDED_HISTORY])
            for row_state in self.row_states:
                row_state.gather(take, len(sample))
            self._copies.begin(self._exchange.own(ancestors))
        self._x0_pred = x0_pred
        self._record(float(timestep), rewards, (log_weights, ess), ancestors)

    def _scored(self, x0_pred: Tensor) -> Tensor:
        try:
            # a copy: x0_pred may be the model's output itself, and a preview or a reward may write to what it gets
            return self._exchange.gather_scores(self._score, x0_pred.clone())
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


def _roles(signature: inspect.Signature) -> list[str]:
    """The parameters of a step for model output, timestep and sample: by name, or the first three of any names."""
    usual, names = ["model_output", "timestep", "sample"], list(signature.parameters)
    return usual if set(usual) <= set(names) else names[:_NUM_ROLES]


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


def _length_of_run(scheduler: Any, timestep: Any, *, given: NumSteps) -> int:
    """How many steps will run.

    Without better knowledge: from the first timestep that is seen to the scheduler's last.
    """
    num_steps = given() if callable(given) else given
    if num_steps is not None:
        if num_steps < 1:
            raise ValueError(f"num_steps should be at least 1, got {num_steps}.")
        return num_steps
    if (begin := getattr(scheduler, "begin_index", None)) is not None:
        return len(scheduler.timesteps) - begin
    numbers = torch.as_tensor(scheduler.timesteps).tolist()
    places = [place for place, number in enumerate(numbers) if number == _number(timestep)]
    if places[:1] == [0] or len(places) == 1:
        return len(numbers) - places[0]
    where = "is not among" if not places else "stands more than once among"
    raise ValueError(
        f"How many steps will run cannot be known: the first timestep, {_number(timestep):g}, {where} the "
        f"{len(numbers)} of scheduler.timesteps. Pass num_steps to steer()."
    )


def _number(timestep: Any) -> float:
    """A timestep as a number; some loops pass one for each row."""
    return float(torch.as_tensor(timestep).flatten()[0])
