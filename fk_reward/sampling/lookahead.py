"""Look-ahead: what the reward is asked about is nearer to the finished image than the one-step prediction.

The predicted clean sample of one step is the mean of all images that can still become of the sample, and so blurred.
`LookAhead` takes a few coarse deterministic steps from it; `ConsistencyPrediction` asks a model that was distilled to
answer in one. Both are a `Prediction` of `steer`, and both ask the denoiser again. Neither changes what a search
targets: in FK steering they are another potential, which the terminal correction takes back.

Letters of shapes: B rows of the batch (G prompts of K particles each, prompt-major).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fk_reward.sampling.records import timestep_number
from fk_reward.sampling.transitions import Denoise, StepState
from fk_reward.sampling.x0_prediction import alpha_sigma, noise_level, predict_x0, predicts_x0
from fk_reward.value_checks import whole_number

_SIGMA_DATA = 0.5
_TIMESTEP_SCALING = 10.0
"""Of the boundary condition of latent consistency models, as `LCMScheduler` has them."""


class LookAhead:
    """The predicted clean sample after a few deterministic steps: DDIM with eta 0, or Euler for flow models.

    The timesteps that the scheduler has left are divided into `num_steps` equal parts, one coarse step each; where
    fewer are left, each is a step. The first step uses the model output of the step that is about to be made, and each
    of the others asks the denoiser once, so that a look-ahead of m steps costs m - 1 more sample steps a particle. The
    arithmetic is in float32.

    With x = alpha x0 + sigma noise, a step goes from the prediction x0 of one level to alpha' x0 + sigma' noise at the
    next. In these terms DDIM with eta 0 (Song et al. 2021, equation 12), Euler on the probability flow (Karras et al.
    2022) and Euler on a flow-matching velocity (Esser et al. 2024) are the same formula. Where a scheduler clips its
    prediction, the noise is that of the clipped one.

    Args:
        num_steps: m; with 1 it is the one-step prediction, bit for bit.

    Raises:
        TypeError: for something that is no whole number.
        ValueError: for a number below 1.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(10)
        >>> sample = torch.ones(1, 1, 2, 2)
        >>> state = StepState(0, 10, scheduler.timesteps[0], sample, torch.zeros_like(sample), scheduler)
        >>> asked = []
        >>> x0_pred = LookAhead(3)(state, lambda sample, timestep: asked.append(int(timestep)) or 0 * sample)
        >>> asked
        [600, 200]
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = whole_number("lookahead", num_steps, minimum=1)

    def __call__(self, state: StepState, denoise: Denoise | None) -> Tensor:
        """Predicted clean samples `(B, C, ...)`, of the type of the one-step prediction.

        Args:
            state: before the step.
            denoise: a sample before `scale_model_input` and a timestep, to the model's output at them. While it is
                called, the scheduler stands at that timestep.

        Raises:
            ValueError: where there is no `denoise`, or the scheduler has no such steps (`require_deterministic_steps`).
        """
        one_step, scheduler = state.x0_pred(), state.scheduler
        places = coarse_places(scheduler, state.timestep, self.num_steps)
        if len(places) == 1:
            return one_step
        if denoise is None:
            raise ValueError(f"A look-ahead of {self.num_steps} steps asks the model: pass steer(..., denoise=...).")
        sample = state.sample.to(torch.float32)
        x0_pred = predict_x0(scheduler, state.model_output.to(torch.float32), state.timestep, sample)
        with returning(scheduler):
            level = alpha_sigma(scheduler, state.timestep)
            for place in places[1:]:
                timestep = stand_at(scheduler, place)
                sample, level = _moved(sample, x0_pred, level, to := alpha_sigma(scheduler, timestep)), to
                output = denoise(sample.to(state.sample.dtype), timestep).to(torch.float32)
                x0_pred = predict_x0(scheduler, output, timestep, sample)
        return x0_pred.to(one_step.dtype)

    def level_of(self, state: StepState) -> float:
        """The noise level at which its last coarse step begins."""
        places = coarse_places(state.scheduler, state.timestep, self.num_steps)
        if len(places) == 1:
            return state.level
        with returning(state.scheduler):
            return noise_level(state.scheduler, stand_at(state.scheduler, places[-1]))


class ConsistencyPrediction:
    """The answer of a consistency model at the present level, such as one that a LoRA makes of the denoiser.

    f(x, t) = c_skip(t) x + c_out(t) x0, with the boundary condition of latent consistency models (Luo et al. 2023,
    arXiv 2310.04378, section 4.1; the coefficients are those of `LCMScheduler`). One call of `denoise`.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(clip_sample=False)
        >>> scheduler.set_timesteps(10)
        >>> sample = torch.ones(1, 1, 2, 2)
        >>> state = StepState(0, 10, scheduler.timesteps[0], sample, sample, scheduler)
        >>> ConsistencyPrediction()(state, lambda sample, timestep: 0 * sample).shape
        torch.Size([1, 1, 2, 2])
    """

    def __call__(self, state: StepState, denoise: Denoise | None) -> Tensor:
        """Predicted clean samples `(B, C, ...)`.

        Args:
            state: before the step.
            denoise: the consistency model.

        Raises:
            ValueError: where there is no `denoise`.
        """
        if denoise is None:
            raise ValueError("A consistency prediction asks the model: pass steer(..., denoise=...).")
        scheduler, sample = state.scheduler, state.sample.to(torch.float32)
        output = denoise(state.sample, state.timestep).to(torch.float32)
        x0_pred = predict_x0(scheduler, output, state.timestep, sample)
        alpha, sigma = alpha_sigma(scheduler, state.timestep)
        scaled = timestep_number(state.timestep) * _TIMESTEP_SCALING
        denominator = scaled**2 + _SIGMA_DATA**2
        c_skip, c_out = _SIGMA_DATA**2 / denominator, scaled / denominator**0.5
        # the boundary condition is stated for samples of unit variance, which those of Euler's family are not
        return (c_skip * sample / (alpha**2 + sigma**2) ** 0.5 + c_out * x0_pred).to(state.x0_pred().dtype)


def coarse_places(scheduler: Any, timestep: Any, num_steps: int) -> list[int]:
    """Where coarse steps begin: indices into `scheduler.timesteps`, from that of this timestep on.

    Args:
        scheduler: after `set_timesteps`.
        timestep: of the step that is about to be made.
        num_steps: m, at most; fewer where fewer timesteps are left.

    Raises:
        ValueError: for a scheduler without such steps.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(20)
        >>> coarse_places(scheduler, scheduler.timesteps[6], 3), coarse_places(scheduler, scheduler.timesteps[18], 3)
        ([6, 11, 15], [18, 19])
    """
    require_deterministic_steps(scheduler)
    numbers = torch.as_tensor(scheduler.timesteps).tolist()
    place = getattr(scheduler, "step_index", None)
    if place is None:
        place = numbers.index(timestep_number(timestep))
    # PNDM's first timesteps are there twice
    left = [i for i in range(place, len(numbers)) if i == place or numbers[i] != numbers[i - 1]]
    number = min(num_steps, len(left))
    return [left[int(part * len(left) / number + 0.5)] for part in range(number)]


def require_deterministic_steps(scheduler: Any) -> None:
    """Refuse schedulers from whose steps no coarse deterministic ones can be made.

    Raises:
        ValueError: where the predicted clean sample is not known, a step asks the denoiser several times, or the
            timesteps do not descend.

    Example:
        >>> from diffusers import HeunDiscreteScheduler
        >>> require_deterministic_steps(HeunDiscreteScheduler())
        Traceback (most recent call last):
        ValueError: HeunDiscreteScheduler has no look-ahead: it asks the denoiser several times a step. Use ...
    """
    numbers = torch.as_tensor(scheduler.timesteps)
    reason = None
    if not predicts_x0(scheduler):
        reason = "its step does not tell the predicted clean sample"
    elif getattr(scheduler, "order", 1) != 1:
        reason = "it asks the denoiser several times a step"
    elif not (numbers[1:] <= numbers[:-1]).all():
        reason = "its timesteps do not descend"
    if reason is not None:
        raise ValueError(
            f"{type(scheduler).__name__} has no look-ahead: {reason}. Use another scheduler, such as DDIMScheduler or "
            "DPMSolverMultistepScheduler, or lookahead=1."
        )


@contextmanager
def returning(scheduler: Any) -> Iterator[None]:
    """Let the scheduler stand anywhere inside the block; afterwards it is as before."""
    before = dict(vars(scheduler))
    try:
        yield
    finally:
        vars(scheduler).clear()
        vars(scheduler).update(before)


def stand_at(scheduler: Any, place: int) -> Any:
    """Let the scheduler stand before the step of this index, and return its timestep; inside `returning`."""
    if hasattr(scheduler, "_step_index"):  # DDIM and DDPM have none, and go by the timestep
        scheduler._step_index = place
    return scheduler.timesteps[place]


def _moved(sample: Tensor, x0_pred: Tensor, level: tuple[float, float], to: tuple[float, float]) -> Tensor:
    """One deterministic step between two levels (alpha, sigma), of which the first has noise."""
    noise = (sample - level[0] * x0_pred) / level[1]
    return to[0] * x0_pred + to[1] * noise
