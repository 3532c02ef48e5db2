"""How a particle moves, and what the reward is asked about: the two seams of a step besides the population.

Both are functions of a `StepState`. `steer` takes them as `transition=` and `prediction=`; without them the scheduler
makes its own move, and the reward reads the predicted clean sample of this one step.

Letters of shapes: B rows of the batch (G prompts of K particles each, prompt-major).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fk_reward.sampling.x0_prediction import predict_x0, signal_share

Denoise: TypeAlias = Callable[[Tensor, Any], Tensor]
"""A sample `(B, C, ...)` and a timestep, to the model's output at them, guidance included."""

Score: TypeAlias = Callable[[Tensor], Tensor]
"""Predicted clean samples `(B, C, ...)` to rewards `(B,)`."""


@dataclass(frozen=True)
class StepState:
    """A step of the scheduler that is about to be made.

    Attributes:
        index: 0-based.
        num_steps: of the run; None where that is not known.
        timestep: the scheduler's.
        sample: `(B, C, ...)`, as `scheduler.step` got it.
        model_output: `(B, C, ...)`, as `scheduler.step` got it.
        scheduler: before its step.
    """

    index: int
    num_steps: int | None
    timestep: Any
    sample: Tensor
    model_output: Tensor
    scheduler: Any

    @property
    def level(self) -> float:
        """Share of the signal, alpha² / (alpha² + sigma²) of `sample = alpha * x0 + sigma * noise`, from 0 to 1."""
        return signal_share(self.scheduler, self.timestep)

    def x0_pred(self) -> Tensor:
        """`(B, C, ...)`, the predicted clean sample of this step."""
        return predict_x0(self.scheduler, self.model_output, self.timestep, self.sample)


@dataclass(frozen=True)
class Moved:
    """Where a transition has taken the particles.

    Attributes:
        sample: `(B, C, ...)`, the next samples.
        log_ratio: `(B,)`, log p/q of these moves: the model's transition density over that of the proposal. It goes
            into the weights. None where the moves are the model's own.
    """

    sample: Tensor
    log_ratio: Tensor | None = None


class Move(Protocol):
    """The scheduler's step. Each call begins from the same state of the scheduler; the last one counts."""

    def __call__(self, *, sample: Tensor | None = None, model_output: Tensor | None = None) -> Tensor:
        """The next sample `(B, C, ...)`; with other arguments than those of the state where they are given."""


class Transition(Protocol):
    """How a particle moves."""

    def __call__(self, state: StepState, move: Move, score: Score) -> Moved:
        """Make one step.

        Args:
            state: before it.
            move: the scheduler's own step. It must be called at least once.
            score: rewards of predicted clean samples, for proposals that look at them.
        """


class Prediction(Protocol):
    """What the reward is asked about at a scoring step."""

    def __call__(self, state: StepState, denoise: Denoise | None) -> Tensor:
        """Predicted clean samples `(B, C, ...)`.

        Args:
            state: before the step.
            denoise: the model; None where `steer` was given none.
        """


def plain_transition(state: StepState, move: Move, score: Score) -> Moved:  # noqa: ARG001 (as all transitions)
    """What the scheduler does."""
    return Moved(move())


def one_step_prediction(state: StepState, denoise: Denoise | None) -> Tensor:  # noqa: ARG001 (as all predictions)
    """The predicted clean sample of this step, which costs nothing."""
    return state.x0_pred()


class RepeatableStep:
    """A scheduler's step that can be made several times from the same state; the last one stays.

    Args:
        scheduler: before its step.
        step: model output and sample to what the scheduler's step returns.
        state: of the step.
    """

    def __init__(self, scheduler: Any, step: Callable[[Tensor, Tensor], Any], state: StepState) -> None:
        self._scheduler, self._step, self._state = scheduler, step, state
        # lists are copied, because DPM-Solver moves the items of its history in place
        self._before = {name: list(v) if isinstance(v, list) else v for name, v in vars(scheduler).items()}
        self._output: Any = None
        self._num_calls = 0

    def __call__(self, *, sample: Tensor | None = None, model_output: Tensor | None = None) -> Tensor:
        """As `Move`."""
        if self._num_calls:
            vars(self._scheduler).clear()
            before = {name: list(v) if isinstance(v, list) else v for name, v in self._before.items()}
            vars(self._scheduler).update(before)
        self._num_calls += 1
        state = self._state
        self._output = self._step(
            state.model_output if model_output is None else model_output, state.sample if sample is None else sample
        )
        next_sample: Tensor = self._output[0]
        return next_sample

    def output(self, moved: Moved, name: str) -> Any:
        """What the loop gets: the scheduler's own output, with the sample of the transition.

        Args:
            moved: what the transition returned.
            name: of the transition, for the message.

        Raises:
            ValueError: when the step was never made, the sample is of another shape, or the log-ratio is of another
                shape, NaN or `+inf`.
        """
        if not self._num_calls:
            raise ValueError(f"{name} never called `move`, so that the scheduler has not made its step.")
        if moved.sample.shape != self._output[0].shape:
            raise ValueError(
                f"{name} should return samples of shape {tuple(self._output[0].shape)}, got "
                f"{tuple(moved.sample.shape)}."
            )
        _check_ratio(moved, name)
        if moved.sample is self._output[0]:
            return self._output
        if isinstance(self._output, tuple) and not hasattr(self._output, "_fields"):
            return (moved.sample, *self._output[1:])
        self._output.prev_sample = moved.sample
        return self._output


def _check_ratio(moved: Moved, name: str) -> None:
    ratio, expected = moved.log_ratio, (len(moved.sample),)
    if ratio is None:
        return
    if tuple(ratio.shape) != expected:
        raise ValueError(f"{name} should return a log_ratio of shape {expected}, got {tuple(ratio.shape)}.")
    bad = (ratio.isnan() | (ratio == torch.inf)).nonzero().flatten().tolist()
    if bad:
        # it would make the weights of all particles of the prompt NaN, from which nothing can be drawn
        raise ValueError(
            f"The log_ratio of {name} for row {bad[0]} is {ratio[bad[0]].item()}: expected finite or -inf."
        )
