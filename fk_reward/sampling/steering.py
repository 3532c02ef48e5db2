"""`steer`: run a search inside anyone's sampling loop by intercepting `scheduler.step`."""

from __future__ import annotations

import functools
import inspect
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.records import (
    NumSteps,
    SteeringRecord,
    SteeringRecords,
    StepRecord,
    length_of_run,
    recorded_weights,
)
from fk_reward.sampling.row_state import GeneratorRows, RowState, SchedulerHistory
from fk_reward.sampling.step_checks import CopiesCheck, FiniteWatch, bounded_variance, check_reported_x0
from fk_reward.sampling.stochasticity import (
    adds_noise_now,
    require_matching_steps,
    require_single_steps,
    require_stochastic,
    step_signature,
    transition_starts,
)
from fk_reward.sampling.transitions import (
    Denoise,
    Prediction,
    RepeatableStep,
    StepState,
    chosen_rows,
    prediction_level,
)
from fk_reward.sampling.x0_prediction import predict_x0, predicts_x0, signal_share
from fk_reward.search.base import Population, ReadsSignal, can_move, can_resize
from fk_reward.search.contract import check_ancestors, check_population, check_scoring_steps, check_size, record_of
from fk_reward.search.moves import Score, Transition, score_at
from fk_reward.search.rollover import Proposing
from fk_reward.smc.particle_filter import grouped_rewards

logger = logging.getLogger(__name__)

_NUM_ROLES = 3

_HANDED_HISTORY = "old_pred_original_sample"
"""CogVideoX's SDE keeps no history of its own: the loop hands it the prediction of the step before."""


@dataclass(frozen=True)
class _Options:
    """What `steer` takes beside scheduler, population and score."""

    step_defaults: Mapping[str, Any] = field(default_factory=dict)
    callback: Callable[[SteeringRecord], None] | None = None
    num_steps: NumSteps = None
    transition: Transition | None = None
    prediction: Prediction | None = None
    denoise: Denoise | None = None


@contextmanager
def steer(  # noqa: PLR0913 (one parameter for each option)
    scheduler: Any,
    population: Population,
    score: Score,
    *,
    step_defaults: dict[str, Any] | None = None,
    callback: Callable[[SteeringRecord], None] | None = None,
    exchange: ParticleExchange | None = None,
    num_steps: NumSteps = None,
    row_states: Sequence[RowState] = (),
    transition: Transition | None = None,
    prediction: Prediction | None = None,
    denoise: Denoise | None = None,
) -> Iterator[SteeringRecords]:
    """Steer every call of `scheduler.step` in the body of the `with` statement.

    At each scoring step of the population the predicted clean samples are scored, and the population says who goes on.
    `sample`, `model_output` and the scheduler's own history of past predictions are gathered by the ancestors, then the
    scheduler makes its move: copies of a particle get independent noise at once. The end is the caller's:
    `population.finish(final_rewards)`. Where the population shrinks or grows, what `scheduler.step` returns has another
    number of rows than it got, and the loop has to cope with that.

    The scheduler gets an instance attribute `step` of the same signature, which is removed at the end, also after an
    error.

    Args:
        scheduler: a Diffusers scheduler. For a population that copies particles its transitions must be stochastic: a
            deterministic one is refused at its first step.
        population: a fresh one, such as `FKSteeringConfig().population()`; the batch of the loop must hold its G * K
            particles, group-major.
        score: `x0_pred` `(G * K, C, ...)` to rewards `(G * K,)`; where it has `at_noise` (`NoiseAware`), that is asked.
        step_defaults: arguments for `step` that are filled in where the loop passes none, for instance `{"eta": 1.0}`.
        callback: called with each record as soon as it exists.
        exchange: where the particles of each prompt are spread over processes. The batch of the loop and of `score`
            then holds this process's share of each prompt, and every process runs the same loop.
        num_steps: how many steps the loop will run, or a function that knows it at the first step. None, also from the
            function, for a loop from its first timestep to the end of `scheduler.timesteps`.
        row_states: what else keeps a row for each particle between steps; it is gathered by the ancestors, too.
        transition: how a particle moves; None for what the scheduler does.
        prediction: what `score` gets, such as `LookAhead(3)`; None for the predicted clean sample of this one step.
        denoise: the model as a function, for a `prediction` that asks it. Its samples are counted as sample steps.

    Yields:
        The list of records, which grows during the run.

    Raises:
        RuntimeError: when the scheduler is being steered already; at the end, when the loop ran fewer steps than
            expected and a population that should have shrunk has not.
        TypeError: for what is no population.
        ValueError: at the first step, for a deterministic scheduler under a search that copies, a batch of the wrong
            size or a length that cannot be known; for a population that changes its size with particles in several
            processes; for ancestors that do not exist; when copies of a particle stay equal, and where a subclass of a
            supported scheduler reports another predicted clean sample than it would.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from fk_reward import FKSteeringConfig
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(5)
        >>> population = FKSteeringConfig(num_particles=4, num_resamples=1).population()
        >>> sample = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        >>> with steer(scheduler, population, lambda x0: x0.mean(dim=(1, 2, 3))) as records:
        ...     for t in scheduler.timesteps:
        ...         noise_pred = torch.zeros_like(sample)
        ...         sample = scheduler.step(noise_pred, t, sample, eta=1.0, generator=torch.Generator()).prev_sample
        >>> [record.step for record in records]
        [2]
    """
    if "step" in vars(scheduler):
        raise RuntimeError(f"This {type(scheduler).__name__} is being steered already; leave the other steer() first.")
    check_population(population)
    if exchange is None:
        exchange = ParticleExchange(num_groups=population.num_groups, num_particles=population.num_particles)
    if exchange.num_processes > 1 and can_resize(population):
        raise ValueError(
            "A search that changes the number of particles (final_particles, cuts, proposals) does not go with a "
            "prompt's particles in several processes: they are shared out evenly."
        )
    options = _Options(step_defaults or {}, callback, num_steps, transition, prediction, denoise)
    interceptor = _StepInterceptor(scheduler, population, score, options=options, exchange=exchange)
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
        self, scheduler: Any, population: Population, score: Score, *, options: _Options, exchange: ParticleExchange
    ) -> None:
        self.records = SteeringRecords(scheduler)
        self.row_states: list[RowState] = []
        self._scheduler = scheduler
        self._population = population
        self._score = score
        self._options = options
        self._exchange = exchange
        self._moves = can_move(population)
        self._original_step = scheduler.step
        self.signature = step_signature(scheduler)
        self._roles = _roles(self.signature)
        self._num_done = 0
        self._pending: list[int] = []
        self._starts: tuple[int, ...] = ()  # of transitions, which are the steps that the population counts
        self._generators = GeneratorRows(population.num_groups, exchange.num_own, copies=population.copies)
        self._copies = CopiesCheck(scheduler)
        self._x0_pred: Tensor | None = None
        self._last_move: RepeatableStep | None = None
        self._level: float | None = None  # of the noise in what is being scored
        self._finite = FiniteWatch(scheduler)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        for name, value in self._options.step_defaults.items():
            if name in self.signature.parameters and bound.arguments.get(name) is None:
                bound.arguments[name] = value
        if self._num_done == 0:
            self._begin(bound.arguments)
        self._count(bound.arguments)  # before scoring, which changes the size
        if self._is_due():
            self._score_and_advance(bound.arguments)
        if "generator" in bound.arguments:
            bound.arguments["generator"] = self._generators.of(bound.arguments["generator"])
        return self._move(bound)

    def _count(self, arguments: dict[str, Any]) -> None:
        """Count what the denoiser has just worked on, which is more than goes on where particles are dropped here."""
        samples = arguments.get(self._roles[-1])
        self.records.sample_steps += len(samples) if isinstance(samples, Tensor) and samples.ndim else 0

    def _move(self, bound: inspect.BoundArguments) -> Any:
        """Let the scheduler make its step, and look at what it did."""
        # read before the step, which advances the scheduler
        state, stochastic = dict(vars(self._scheduler)), adds_noise_now(self._scheduler)
        output = self._call_original(bound)
        if not stochastic:
            self._last_move = None  # another draw would be the same
        if len(self._roles) == _NUM_ROLES:
            self.records.last_step = StepRecord(state, *self._inputs(bound.arguments))
        if self._x0_pred is not None:
            self._tell(check_reported_x0(self._scheduler, output, self._x0_pred))
            self._x0_pred = None
        if stochastic and self._population.copies:
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
            if self._options.transition is not None:
                output = self._transitioned(bound)
            elif isinstance(self._population, Proposing):
                self._last_move = self._repeatable(bound)
                output = self._last_move.made()
            else:
                output = self._handed_on(bound)
        self._finite.see("scheduler", output[0], step=self._num_done)
        return output

    def _transitioned(self, bound: inspect.BoundArguments) -> Any:
        """Let the transition move the particles, with the scheduler's step at its disposal."""
        transition: Any = self._options.transition
        move, state = self._repeatable(bound), self._state(bound.arguments)
        moved = transition(state, move, score_at(self._score, prediction_level(None, state)))
        output = move.output(moved, getattr(transition, "__name__", type(transition).__name__))
        if moved.log_ratio is not None:
            log_ratio = self._exchange.gather(moved.log_ratio.detach().to(torch.float64).cpu())
            before = self.records.log_ratio
            self.records.log_ratio = log_ratio if before is None else before + log_ratio
        return output

    def _repeatable(self, bound: inspect.BoundArguments) -> RepeatableStep:
        state, (model_role, _, sample_role) = self._state(bound.arguments), self._roles

        def step(model_output: Tensor, sample: Tensor) -> Any:
            bound.arguments[model_role], bound.arguments[sample_role] = model_output, sample
            return self._handed_on(bound)

        return RepeatableStep(self._scheduler, step, state)

    def _state(self, arguments: dict[str, Any]) -> StepState:
        model_output, timestep, sample = self._inputs(arguments)
        steps = self.records.expected_steps
        return StepState(self._num_done, steps, timestep, sample, model_output, self._scheduler)

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
        expected, ran, left = self.records.expected_steps, self._num_done, self._population.num_particles
        if expected is None:
            return
        finished = self._population.forecast(len(self._starts)).finished if self._moves else left
        if left > finished:
            raise RuntimeError(
                f"The loop ended after {ran} of {expected} steps with {left} particles of a prompt, and the search "
                f"(final_particles, or its cuts) asks for {finished}: it was interrupted, or num_steps is wrong."
            )
        if ran < expected:
            self._tell(
                f"The loop ended after {ran} of {expected} steps"
                + (f", before its scoring steps {self._pending}." if self._pending else ".")
            )
        elif ran > expected and self._moves:
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

    def _is_due(self) -> bool:
        """Whether the particles are scored before this step.

        Copies have to wait for a step with noise; of several scoring steps that waited, one is made.
        """
        waits = self._population.copies and not adds_noise_now(self._scheduler)
        if not self._pending or waits or not self._population.needs_scores:
            return False
        due = [step for step in self._pending if step <= self._num_done]
        self._pending = self._pending[len(due) :]
        return bool(due)

    def _begin(self, arguments: dict[str, Any]) -> None:
        needs_noise = getattr(self._options.transition, "needs_noise", False)
        draws = self._population.copies or isinstance(self._population, Proposing)
        if needs_noise or (self._moves and draws):
            require_stochastic(self._scheduler, eta=arguments.get("eta"))
            require_matching_steps(self._scheduler)
        if isinstance(self._population, Proposing) or self._options.transition is not None:
            require_single_steps(self._scheduler, type(self._population).__name__)
        if not self._moves:
            given = self._options.num_steps
            if needs_noise:  # a search with moves of its own places them on the run
                given = length_of_run(self._scheduler, self._inputs(arguments)[1], given=given)
            self.records.expected_steps = given() if callable(given) else given
            return
        _require_prediction(self._scheduler, self._population, self._options.prediction)
        _, timestep, sample = self._inputs(arguments)
        num_groups, num_own = self._exchange.num_groups, self._exchange.num_own
        if len(sample) != num_groups * num_own:
            raise ValueError(
                f"The batch should hold {num_groups} prompts x {num_own} particles = {num_groups * num_own} samples, "
                f"got {len(sample)}."
            )
        num_steps = length_of_run(self._scheduler, timestep, given=self._options.num_steps)
        self.records.expected_steps = num_steps
        self._starts = transition_starts(self._scheduler, num_steps)
        warning = self._population.begin(len(self._starts))
        if warning is not None:
            logger.warning(warning)
        scoring = check_scoring_steps(self._population, len(self._starts))
        self._pending = [self._starts[number] for number in scoring]

    @property
    def _number(self) -> int:
        """Of the transition that is being made, as the population counts."""
        is_plain = len(self._starts) == self.records.expected_steps
        return self._num_done if is_plain else bisect_right(self._starts, self._num_done) - 1

    def _score_and_advance(self, arguments: dict[str, Any]) -> None:
        model_output, timestep, sample = self._inputs(arguments)
        x0_pred = self._predicted(arguments)
        for place, tensor in (("start", sample), ("denoiser", model_output), ("prediction", x0_pred)):
            self._finite.see(place, tensor, step=self._num_done)
        self._finite.check()  # before the decoder and the reward get to see it
        rewards, num_before = self._scored(x0_pred), self._population.num_particles
        grouped_rewards(rewards, self._exchange.num_groups, num_before, step=self._num_done)
        if isinstance(self._population, Proposing):
            rewards, x0_pred = self._proposed(arguments, rewards, x0_pred)
        if isinstance(self._population, ReadsSignal) and self._population.reads_signal:
            self._population.at_signal(signal_share(self._scheduler, timestep))
        ancestors = self._advanced(rewards)
        check_ancestors(ancestors, self._population, num_before)
        check_size(self._population, step=self._number, num_steps=len(self._starts))
        if ancestors is not None:
            self._gather(arguments, ancestors)
            x0_pred = self._exchange.take(x0_pred, ancestors)
        # a transition may make its step from other samples, a prediction may say something else than the scheduler
        is_plain = self._options.prediction is None and self._options.transition is None
        self._x0_pred = x0_pred if is_plain else None
        self._record(float(timestep), rewards.detach().to("cpu", torch.float32).view(-1, num_before), ancestors)

    def _predicted(self, arguments: dict[str, Any]) -> Tensor:
        self._level = prediction_level(self._options.prediction, self._state(arguments))
        if self._options.prediction is not None:
            denoise = None if self._options.denoise is None else self._counted_denoise
            return self._options.prediction(self._state(arguments), denoise)
        model_output, timestep, sample = self._inputs(arguments)
        return predict_x0(self._scheduler, model_output, timestep, sample)

    def _proposed(self, arguments: dict[str, Any], rewards: Tensor, x0_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the last step again while the population wants more; the draws that it takes are left in `arguments`."""
        population, (model_role, timestep_role, sample_role) = self._population, self._roles
        if not isinstance(population, Proposing):
            return rewards, x0_pred
        population.consider(rewards, step=self._num_done)
        while population.wants_more and self._last_move is not None:
            with bounded_variance(self._scheduler, arguments.get("eta")):
                drawn = self._last_move.made_again()
            model_output = self._counted_denoise(drawn, arguments[timestep_role]).to(arguments[model_role].dtype)
            others = {**arguments, model_role: model_output, sample_role: drawn}
            predicted = self._predicted(others)
            self._finite.see("prediction", predicted, step=self._num_done)
            self._finite.check()
            scores = self._scored(predicted)
            rows = population.consider(scores, step=self._num_done).to(drawn.device)
            for role in (model_role, sample_role):
                arguments[role] = chosen_rows(rows, others[role], arguments[role])
            x0_pred = chosen_rows(rows, predicted, x0_pred)
            rewards = chosen_rows(rows.to(rewards.device), scores, rewards)
        return rewards, x0_pred

    def _counted_denoise(self, sample: Tensor, timestep: Any) -> Tensor:
        """The model, each sample of which is another sample step."""
        if self._options.denoise is None:
            raise ValueError("There is no model to ask: pass steer(..., denoise=...).")
        self.records.sample_steps += len(sample)
        return self._options.denoise(sample, timestep)

    def _advanced(self, rewards: Tensor) -> Tensor | None:
        # the log-ratio belongs to the particles of now: weigh it before any is copied
        log_ratio, self.records.log_ratio = self.records.log_ratio, None
        return self._population.advance(rewards, step=self._number, log_ratio=log_ratio)

    def _gather(self, arguments: dict[str, Any], ancestors: Tensor) -> None:
        """Let everything that has a row for each particle be that of the ancestors."""
        model_output, _, sample = self._inputs(arguments)
        take = functools.partial(self._exchange.take, ancestors=ancestors)
        arguments[self._roles[0]], arguments[self._roles[2]] = take(model_output), take(sample)
        if arguments.get(_HANDED_HISTORY) is not None:
            arguments[_HANDED_HISTORY] = take(arguments[_HANDED_HISTORY])
        for row_state in self.row_states:
            row_state.gather(take, len(sample))
        self._generators.gather(ancestors, self._exchange.share(self._population.num_particles))
        if self._population.copies:
            self._copies.begin(self._exchange.own(ancestors))

    def _scored(self, x0_pred: Tensor) -> Tensor:
        try:
            # a copy: x0_pred may be the model's output itself, and a preview or a reward may write to what it gets
            return self._exchange.gather_scores(score_at(self._score, self._level), x0_pred.clone())
        except ValueError as error:
            raise ValueError(f"At step {self._num_done}: {error}") from error

    def _record(self, timestep: float, rewards: Tensor, ancestors: Tensor | None) -> None:
        num_groups, num_particles = rewards.shape
        log_weights, ess = recorded_weights(record_of(self._population, num_particles), rewards)
        record = SteeringRecord(
            step=self._num_done,
            timestep=timestep,
            rewards=rewards,
            log_weights=log_weights,
            ess=ess,
            ancestors=None if ancestors is None else ancestors.view(num_groups, -1) % num_particles,
            level=self._level,
        )
        self.records.append(record)
        if self._options.callback is not None:
            self._options.callback(record)


def _roles(signature: inspect.Signature) -> list[str]:
    """The parameters of a step for model output, timestep and sample: by name, or the first three of any names."""
    usual, names = ["model_output", "timestep", "sample"], list(signature.parameters)
    return usual if set(usual) <= set(names) else names[:_NUM_ROLES]


def _require_prediction(scheduler: Any, population: Population, prediction: Prediction | None) -> None:
    """Refuse a scheduler whose predictions are not known here, before anything is drawn."""
    if prediction is None and not predicts_x0(scheduler):
        raise ValueError(
            f"{type(population).__name__} scores predicted clean samples, which the step of "
            f"{type(scheduler).__name__} does not tell: use another scheduler, such as DDIMScheduler or "
            "DPMSolverMultistepScheduler, or a search that scores finished images only (best-of-n)."
        )
    if isinstance(population, ReadsSignal) and population.reads_signal and not predicts_x0(scheduler):
        raise ValueError(
            f"{type(population).__name__} weighs rewards by the share of the signal (reward_weight='rising'), and the "
            f"noise levels of {type(scheduler).__name__} are not known: give reward_weight='constant', or numbers."
        )
