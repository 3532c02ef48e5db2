"""The predicted clean sample of a scheduler step, `x0_pred`, for each family of schedulers and each prediction type.

Each formula is that of the scheduler's own `step` in Diffusers, clipping and thresholding included, so that `x0_pred`
equals the `pred_original_sample` of the schedulers that report it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

PredictX0 = Callable[[Any, Tensor, Any, Tensor], Tensor]
"""Scheduler, model output, timestep and sample, to the predicted clean sample, of the shape of the sample."""

_NEVER_CLIP = ("CogVideoXDPMScheduler", "TCDScheduler")
"""Schedulers that have a setting `clip_sample` and do not read it."""


def predict_x0(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Predicted clean sample before a call of `scheduler.step(model_output, timestep, sample)`.

    Args:
        scheduler: a Diffusers scheduler of `X0_PREDICTIONS`, after `set_timesteps`.
        model_output: `(B, C, ...)`, or `(B, 2 C, ...)` with a learned variance.
        timestep: as it is given to `step`.
        sample: `(B, C, ...)`.

    Returns:
        `(B, C, ...)`.

    Raises:
        ValueError: for a scheduler or a prediction type that is not known here.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
        >>> predict_x0(scheduler, torch.ones(1, 3, 2, 2), 10, torch.zeros(1, 3, 2, 2)).mean()
        tensor(1.)
    """
    predict = _of_class(scheduler, X0_PREDICTIONS | DETERMINISTIC_X0_PREDICTIONS)
    if predict is None:
        known = sorted(X0_PREDICTIONS | DETERMINISTIC_X0_PREDICTIONS)
        raise ValueError(f"{type(scheduler).__name__} cannot be steered; supported are {known}.")
    return predict(scheduler, _without_variance(scheduler, model_output, sample), timestep, sample)


def predicts_x0(scheduler: Any) -> bool:
    """Whether the predicted clean sample of its steps is known here.

    Example:
        >>> from diffusers import EulerDiscreteScheduler, IPNDMScheduler
        >>> predicts_x0(EulerDiscreteScheduler()), predicts_x0(IPNDMScheduler())
        (True, False)
    """
    return _of_class(scheduler, X0_PREDICTIONS | DETERMINISTIC_X0_PREDICTIONS) is not None


def _of_class(scheduler: Any, table: Mapping[str, T]) -> T | None:
    return next((table[c.__name__] for c in type(scheduler).__mro__ if c.__name__ in table), None)


def signal_share(scheduler: Any, timestep: Any) -> float:
    """Share of the signal in the samples before a step, alpha² / (alpha² + sigma²).

    Args:
        scheduler: one whose predicted clean sample is known.
        timestep: as it is given to `step`.

    Returns:
        From 0, pure noise, to 1, clean. Alpha-bar where the schedule preserves the variance.

    Raises:
        ValueError: for a scheduler that is not known here.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> round(signal_share(scheduler, 500) / float(scheduler.alphas_cumprod[500]), 6)
        1.0
    """
    alpha, sigma = alpha_sigma(scheduler, timestep)
    return alpha**2 / (alpha**2 + sigma**2)


def alpha_sigma(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """Alpha and sigma of the samples before a step, `sample = alpha * x0 + sigma * noise`.

    Args:
        scheduler: one whose predicted clean sample is known.
        timestep: as it is given to `step`.

    Returns:
        (sqrt(alpha-bar), sqrt(1 - alpha-bar)) where the schedule preserves the variance, (1, sigma) where the noise is
        added to the clean sample, (1 - sigma, sigma) for flow matching.

    Raises:
        ValueError: for a scheduler that is not known here.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> scheduler = FlowMatchEulerDiscreteScheduler()
        >>> scheduler.set_timesteps(sigmas=[1.0, 0.75])
        >>> alpha_sigma(scheduler, scheduler.timesteps[1])
        (0.25, 0.75)
    """
    predict = _of_class(scheduler, X0_PREDICTIONS | DETERMINISTIC_X0_PREDICTIONS)
    if predict is None:
        raise ValueError(f"The noise levels of {type(scheduler).__name__} are not known.")
    if predict is _from_alpha_bar:
        alpha_bar = float(scheduler.alphas_cumprod[timestep])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    sigma = scheduler.sigmas[_step_index(scheduler, timestep)]
    if predict is _from_two_stage_sigma:
        sigma = _two_stage_sigma(scheduler, timestep)
    alpha: Any = 1.0
    if predict in (_from_dpm_solver, _from_unipc, _from_deis):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
    elif predict is _from_flow:
        alpha = 1 - sigma
    return float(alpha), float(sigma)


def noise_level(scheduler: Any, timestep: Any) -> float:
    """Noise level of the samples before a step, sigma / sqrt(alpha² + sigma²): what `Reward.at_noise` is asked about.

    Args:
        scheduler: one whose predicted clean sample is known.
        timestep: as it is given to `step`; of one for each row the first counts.

    Returns:
        From 0, clean, to 1, pure noise. sqrt(1 - alpha-bar) where the schedule preserves the variance.

    Raises:
        ValueError: for a scheduler that is not known here.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> scheduler = EulerDiscreteScheduler()
        >>> scheduler.set_timesteps(sigmas=[0.75, 0.0])
        >>> round(noise_level(scheduler, scheduler.timesteps[0]), 4)  # 3, 4, 5
        0.6
    """
    first = timestep.flatten()[0] if isinstance(timestep, Tensor) and timestep.ndim else timestep
    alpha, sigma = alpha_sigma(scheduler, first)
    return sigma / (alpha**2 + sigma**2) ** 0.5


def scheduler_name(scheduler: Any) -> str | None:
    """Name of the class of `X0_PREDICTIONS` that this scheduler is or derives from; None where there is none.

    Example:
        >>> from diffusers import DDIMScheduler, PNDMScheduler
        >>> scheduler_name(DDIMScheduler()), scheduler_name(PNDMScheduler())
        ('DDIMScheduler', None)
    """
    return next((c.__name__ for c in type(scheduler).__mro__ if c.__name__ in X0_PREDICTIONS), None)


def _without_variance(scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    num_channels = sample.shape[1]
    if learned and model_output.shape[1] == 2 * num_channels:
        return model_output[:, :num_channels]
    return model_output


def _from_alpha_bar(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Variance-preserving schedulers that look their alpha-bar up by timestep: DDPM, DDIM, LCM, TCD."""
    alpha_bar = scheduler.alphas_cumprod[timestep]
    x0_pred = _from_alpha_sigma(scheduler, model_output, sample, (alpha_bar**0.5, (1 - alpha_bar) ** 0.5))
    if scheduler.config.get("thresholding"):
        return scheduler._threshold_sample(x0_pred)
    if scheduler.config.get("clip_sample") and scheduler_name(scheduler) not in _NEVER_CLIP:
        limit = scheduler.config.clip_sample_range
        return x0_pred.clamp(-limit, limit)
    return x0_pred


def _from_alpha_sigma(
    scheduler: Any, model_output: Tensor, sample: Tensor, alpha_sigma: tuple[Tensor, Tensor]
) -> Tensor:
    """Inverse of `sample = alpha * x0 + sigma * noise`: Salimans and Ho (2022), appendix D."""
    alpha, sigma = alpha_sigma
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (sample - sigma * model_output) / alpha
    if kind == "v_prediction":
        return alpha * sample - sigma * model_output
    if kind == "sample":
        return model_output
    raise _unknown_prediction_type(scheduler)


def _from_sigma(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Variance-exploding sampling of Karras et al. (2022), `sample = x0 + sigma * noise`: Euler ancestral."""
    sigma = scheduler.sigmas[_step_index(scheduler, timestep)]
    # in half precision sample and sigma * noise, both of size sigma, would leave nothing but rounding; the step widens
    return _from_noise_level(scheduler, model_output, sample.to(torch.float32), sigma)


def _from_two_stage_sigma(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """As `_from_sigma` for KDPM2 ancestral, whose second stage stands at an interpolated sigma."""
    return _from_noise_level(scheduler, model_output, sample, _two_stage_sigma(scheduler, timestep))


def _two_stage_sigma(scheduler: Any, timestep: Any) -> Tensor:
    index = _step_index(scheduler, timestep)
    if scheduler.state_in_first_order:
        return scheduler.sigmas[index]
    return scheduler.sigmas_interpol[index - 1]


def _from_noise_level(scheduler: Any, model_output: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return sample - sigma * model_output
    if kind == "v_prediction":
        return model_output * (-sigma / (sigma**2 + 1) ** 0.5) + sample / (sigma**2 + 1)
    raise _unknown_prediction_type(scheduler)


def _from_dpm_solver(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """DPM-Solver family: its own conversion gives x0 in the "++" variants, the noise in the others."""
    is_x0 = scheduler.config.algorithm_type.endswith("++")
    return _converted(scheduler, model_output, timestep, sample, is_x0=is_x0)


def _from_flow(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Flow matching, `sample = (1 - sigma) * x0 + sigma * noise`, velocity `noise - x0`: Esser et al. (2024)."""
    sigma = scheduler.sigmas[_step_index(scheduler, timestep)]
    return sample.to(torch.float32) - sigma * model_output


def _from_unipc(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """UniPC: its own conversion gives x0, or the noise with `predict_x0=False`."""
    return _converted(scheduler, model_output, timestep, sample, is_x0=bool(scheduler.config.predict_x0))


def _from_deis(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """DEIS: its own conversion gives the noise."""
    return _converted(scheduler, model_output, timestep, sample, is_x0=False)


def _converted(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, *, is_x0: bool) -> Tensor:
    index = _step_index(scheduler, timestep)
    converted: Tensor = scheduler.convert_model_output(model_output, sample=sample)
    if is_x0:
        return converted
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return (sample - sigma * converted) / alpha


def _step_index(scheduler: Any, timestep: Any) -> int:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # what `step` itself does first
    return scheduler.step_index


def _unknown_prediction_type(scheduler: Any) -> ValueError:
    kind = scheduler.config.prediction_type
    return ValueError(f"{type(scheduler).__name__} with prediction_type {kind!r} cannot be steered.")


X0_PREDICTIONS: dict[str, PredictX0] = {
    "CogVideoXDPMScheduler": _from_alpha_bar,
    "DDIMScheduler": _from_alpha_bar,
    "DDPMScheduler": _from_alpha_bar,
    "DPMSolverMultistepScheduler": _from_dpm_solver,
    "DPMSolverSinglestepScheduler": _from_dpm_solver,
    "EDMDPMSolverMultistepScheduler": _from_dpm_solver,
    "EulerAncestralDiscreteScheduler": _from_sigma,
    "FlowMatchEulerDiscreteScheduler": _from_flow,
    "FlowMatchGLASSScheduler": _from_flow,
    "FlowMatchLCMScheduler": _from_flow,
    "FlowMatchSDEScheduler": _from_flow,
    "KDPM2AncestralDiscreteScheduler": _from_two_stage_sigma,
    "LCMScheduler": _from_alpha_bar,
    "TCDScheduler": _from_alpha_bar,
}
"""Schedulers that can be stochastic, by class name."""

DETERMINISTIC_X0_PREDICTIONS: dict[str, PredictX0] = {
    "DEISMultistepScheduler": _from_deis,
    "EulerDiscreteScheduler": _from_sigma,
    "FlowMatchHeunDiscreteScheduler": _from_flow,
    "HeunDiscreteScheduler": _from_sigma,
    "LMSDiscreteScheduler": _from_sigma,
    "PNDMScheduler": _from_alpha_bar,
    "UniPCMultistepScheduler": _from_unipc,
}
"""Schedulers that never add noise, for searches without copies, by class name."""
