"""The predicted clean sample of a scheduler step, `x0_pred`, for each family of schedulers and each prediction type.

Each formula is that of the scheduler's own `step` in Diffusers, clipping and thresholding included, so that `x0_pred`
equals the `pred_original_sample` of the schedulers that report it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    name = scheduler_name(scheduler)
    if name is None:
        raise ValueError(f"{type(scheduler).__name__} cannot be steered; supported are {sorted(X0_PREDICTIONS)}.")
    return X0_PREDICTIONS[name](scheduler, _without_variance(scheduler, model_output, sample), timestep, sample)


def scheduler_name(scheduler: Any) -> str | None:
    """Name of the supported Diffusers class that this scheduler is or derives from; None where there is none.

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
    index = _step_index(scheduler, timestep)
    first_stage = scheduler.state_in_first_order
    sigma = scheduler.sigmas[index] if first_stage else scheduler.sigmas_interpol[index - 1]
    return _from_noise_level(scheduler, model_output, sample, sigma)


def _from_noise_level(scheduler: Any, model_output: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return sample - sigma * model_output
    if kind == "v_prediction":
        return model_output * (-sigma / (sigma**2 + 1) ** 0.5) + sample / (sigma**2 + 1)
    raise _unknown_prediction_type(scheduler)


def _from_dpm_solver(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """DPM-Solver family: its own conversion gives x0 in the "++" variants, the noise in the others."""
    index = _step_index(scheduler, timestep)
    converted = scheduler.convert_model_output(model_output, sample=sample)
    if scheduler.config.algorithm_type.endswith("++"):
        return converted
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])
    return (sample - sigma * converted) / alpha


def _from_flow(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Flow matching, `sample = (1 - sigma) * x0 + sigma * noise`, velocity `noise - x0`: Esser et al. (2024)."""
    sigma = scheduler.sigmas[_step_index(scheduler, timestep)]
    return sample.to(torch.float32) - sigma * model_output


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
    "FlowMatchLCMScheduler": _from_flow,
    "FlowMatchSDEScheduler": _from_flow,
    "KDPM2AncestralDiscreteScheduler": _from_two_stage_sigma,
    "LCMScheduler": _from_alpha_bar,
    "TCDScheduler": _from_alpha_bar,
}
"""Supported schedulers by class name."""
