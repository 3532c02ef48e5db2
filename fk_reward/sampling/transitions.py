"""How a particle moves, and what the reward is asked about: the two seams of a step besides the population.

Both are functions of a `StepState`. `steer` takes them as `transition=` (`fk_reward.search.moves.Transition`) and
`prediction=`; without them the scheduler makes its own move, and the reward reads the predicted clean sample of this
one step.

Letters of shapes: B rows of the batch (G prompts of K particles each, prompt-major).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from fk_reward.sampling.normal_draws import NormalDraws
from fk_reward.sampling.row_state import map_tensors
from fk_reward.sampling.x0_prediction import alpha_sigma, noise_level, predict_x0, predicts_x0
from fk_reward.search.moves import BeforeStep, Drawn, Move, Moved, Score

Denoise: TypeAlias = Callable[[Tensor, Any], Tensor]
"""A sample `(B, C, ...)` before `scale_model_input` and a timestep, to the model's output, guidance included."""


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
        """Noise level, sigma / sqrt(alpha² + sigma²) of `sample = alpha * x0 + sigma * noise`, from 0 to 1."""
        return noise_level(self.scheduler, self.timestep)

    @property
    def alpha_sigma(self) -> tuple[float, float]:
        """Alpha and sigma of `sample = alpha * x0 + sigma * noise`."""
        return alpha_sigma(self.scheduler, self.timestep)

    def x0_pred(self) -> Tensor:
        """`(B, C, ...)`, the predicted clean sample of this step."""
        return predict_x0(self.scheduler, self.model_output, self.timestep, self.sample)


class Prediction(Protocol):
    """What the reward is asked about at a scoring step."""

    def __call__(self, state: StepState, denoise: Denoise | None) -> Tensor:
        """Predicted clean samples `(B, C, ...)`.

        Args:
            state: before the step.
            denoise: the model; None where `steer` was given none.
        """


def plain_transition(state: BeforeStep, move: Move, score: Score) -> Moved:  # noqa: ARG001 (as all transitions)
    """What the scheduler does."""
    return Moved(move())


def one_step_prediction(state: StepState, denoise: Denoise | None) -> Tensor:  # noqa: ARG001 (as all predictions)
    """The predicted clean sample of this step, which costs nothing."""
    return state.x0_pred()


@runtime_checkable
class HasLevel(Protocol):
    """What a `Prediction` has besides, if it is not made from the sample of the step."""

    def level_of(self, state: StepState) -> float:
        """The noise level of the sample from which its last prediction is made, before it is made."""


def prediction_level(prediction: Prediction | None, state: StepState) -> float | None:
    """The noise level of what the reward is asked about; None where the scheduler's levels are not known.

    Args:
        prediction: of the run; None for that of the step.
        state: before the step.
    """
    if not predicts_x0(state.scheduler):
        return None
    return prediction.level_of(state) if isinstance(prediction, HasLevel) else state.level


def chosen_rows(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The rows of the one where a mask `(B,)` says so, and those of the other elsewhere.

    Example:
        >>> chosen_rows(torch.tensor([True, False]), torch.ones(2, 1), torch.zeros(2, 1)).tolist()
        [[1.0], [0.0]]
    """
    return torch.where(rows.view(-1, *(1,) * (old.ndim - 1)), new, old)


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

    def drawn(self) -> Drawn:
        """As `Move`. Only the noise carries a gradient here, so that this is as cheap as the step itself."""
        # Outside of inference mode, whose tensors autograd does not know; a pipeline's call may stand in it
        with torch.inference_mode(False), torch.enable_grad(), _TracedNoise() as traced:
            moved = self()
            noise = traced.joined(self._state.sample, type(self._scheduler).__name__)
            scale = traced.scale_of(moved, self._state.sample)
        history = vars(self._scheduler)
        history.update({name: map_tensors(_without_graph, value) for name, value in history.items()})
        return Drawn(moved.detach(), noise, scale)

    def made(self) -> Any:
        """Make the step; what the scheduler's step returns."""
        self()
        return self._output

    def made_again(self) -> Tensor:
        """Another draw `(B, C, ...)` of the step; the scheduler is left where it is, before a later one."""
        now = dict(vars(self._scheduler))
        try:
            return self()
        finally:
            vars(self._scheduler).clear()
            vars(self._scheduler).update(now)

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


class _TracedNoise(NormalDraws):
    """Keeps the numbers that are drawn inside the block, and traces what becomes of them."""

    def kept(self, numbers: Tensor) -> Tensor:
        return numbers.detach().requires_grad_()

    def joined(self, sample: Tensor, name: str) -> Tensor:
        """The noise as one tensor of the shape of the sample: pipelines draw it at once, or row by row.

        Raises:
            ValueError: for other numbers than one for each number of the sample.
        """
        if not self.drawn:
            return torch.zeros_like(sample, dtype=torch.float32)
        if any(one.shape[1:] != sample.shape[1:] for one in self.drawn) or sum(map(len, self.drawn)) != len(sample):
            shapes = [tuple(one.shape) for one in self.drawn]
            raise ValueError(
                f"The step of {name} draws noise of the shapes {shapes} for samples {tuple(sample.shape)}, so that the "
                "density of its moves is not known here: use DDIMScheduler with eta=1.0, or a search without "
                "proposals of its own, such as fk."
            )
        return torch.cat([one.detach().to(sample.device, torch.float32) for one in self.drawn])

    def scale_of(self, moved: Tensor, sample: Tensor) -> Tensor:
        """By what the noise was multiplied: each number of the next sample depends on one number of the noise."""
        if not self.drawn or not moved.requires_grad:
            return torch.zeros_like(sample, dtype=torch.float32)
        found = torch.autograd.grad(moved.sum(), self.drawn, allow_unused=True, materialize_grads=True)
        return torch.cat([one.to(sample.device, torch.float32) for one in found])


def _without_graph(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


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
