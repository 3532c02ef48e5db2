"""The noise levels of a model, and the stochastic scheduler of Diffusers that samples at the same ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
from torch import Tensor

from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler

_PLAIN_STEP = {"model_output", "timestep", "sample"}
_LEVEL_SETTINGS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"),
    *("sigma_max", "sigma_min", "sigma_data", "shift", "flow_shift"),
)


@dataclass(frozen=True)
class NoiseLevels:
    """What a model was trained on, as its scheduler tells it.

    Attributes:
        kind: `"betas"`, `"flow"` or `"edm"`; models of different kinds have nothing to do with each other.
        values: of `"betas"` the alpha-bars of all training timesteps, of `"flow"` the number of training timesteps, of
            `"edm"` the largest and the smallest sigma and that of the data.
    """

    kind: str
    values: Tensor

    def equal(self, other: NoiseLevels) -> bool:
        """Whether a model of these levels is at home on the others.

        Solvers keep the last alpha-bar of a zero-terminal-SNR model a little above 0, hence the tolerance.
        """
        same_form = self.kind == other.kind and self.values.shape == other.values.shape
        return same_form and torch.allclose(self.values, other.values, rtol=1e-3, atol=1e-6)


def noise_levels(scheduler: Any) -> NoiseLevels | None:
    """Noise levels of the model that came with a scheduler; None where they are not known here.

    Example:
        >>> from diffusers import CogVideoXDDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
        >>> noise_levels(EulerDiscreteScheduler()).kind, noise_levels(CogVideoXDDIMScheduler()).kind
        ('betas', 'betas')
        >>> noise_levels(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")).kind
        'flow'
    """
    config, name = getattr(scheduler, "config", None), type(scheduler).__name__
    if config is None:
        return None
    if name.startswith(("FlowMatch", "LTXEuler")) or config.get("use_flow_sigmas"):
        upside_down = config.get("invert_sigmas")  # Mochi: sigma counts the other way round
        return None if upside_down else NoiseLevels("flow", torch.tensor([float(config.num_train_timesteps)]))
    if name.startswith("EDM"):
        return NoiseLevels("edm", torch.tensor([config.sigma_max, config.sigma_min, config.sigma_data]))
    alpha_bars = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alpha_bars, Tensor) or config.get("timestep_type") == "continuous":  # Euler on log-sigmas
        return None
    return NoiseLevels("betas", alpha_bars.detach().to("cpu", torch.float64))


@dataclass(frozen=True)
class Counterpart:
    """How to make a stochastic scheduler out of a model's own. `str` of it is the line of code.

    Attributes:
        scheduler: class of the new scheduler.
        config: settings in which it differs from the model's own.
    """

    scheduler: type[Any]
    config: Mapping[str, Any] = field(default_factory=dict)

    def build(self, scheduler: Any) -> Any:
        """The new scheduler, with the other settings of the model's own."""
        return self.scheduler.from_config(scheduler.config, **self.config)

    def __str__(self) -> str:
        settings = "".join(f", {name}={_written(value)}" for name, value in self.config.items())
        return f"{self.scheduler.__name__}.from_config(scheduler.config{settings})"


_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_DDIM = Counterpart(DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False})
_COGVIDEOX = Counterpart(CogVideoXDPMScheduler)
_EDM = Counterpart(EDMDPMSolverMultistepScheduler, _SDE)
_FLOW = Counterpart(FlowMatchSDEScheduler, {"stochastic_sampling": False})
_FLOW_SOLVER = Counterpart(DPMSolverMultistepScheduler, {**_SDE, "prediction_type": "flow_prediction"})


def counterpart(scheduler: Any) -> Counterpart | None:
    """The stochastic scheduler that samples the model of another at the same noise levels; None where none is known.

    DDIM, to be run with eta 1, is the setting of Singhal et al. (2025) for models with a schedule of betas. Flow models
    and EDM models have SDE-DPM-Solver++, and CogVideoX (CogView3-Plus), whose alpha-bars are shifted, its own SDE.

    Example:
        >>> from diffusers import EulerDiscreteScheduler, IPNDMScheduler
        >>> print(counterpart(EulerDiscreteScheduler()))
        DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False)
        >>> counterpart(IPNDMScheduler()) is None
        True
    """
    levels = noise_levels(scheduler)
    candidate = None if levels is None else _candidate(scheduler, levels.kind)
    if levels is None or candidate is None:
        return None
    found = replace(candidate, config={**lost_settings(scheduler, candidate.scheduler), **candidate.config})
    built = noise_levels(found.build(scheduler))
    return found if built is not None and levels.equal(built) else None


def lost_settings(scheduler: Any, target: type[Any]) -> dict[str, Any]:
    """Settings of the noise levels that `target.from_config(scheduler.config)` would leave to its own defaults.

    It drops what was never set: Heun's betas are by default those of Stable Diffusion, and DDIM's are not.

    Example:
        >>> from diffusers import HeunDiscreteScheduler
        >>> lost_settings(HeunDiscreteScheduler(beta_end=0.01), DDIMScheduler)
        {'beta_start': 0.00085}
    """
    config, defaults = scheduler.config, inspect.signature(target).parameters
    unset = [name for name in _LEVEL_SETTINGS if name in config.get("_use_default_values", ()) and name in defaults]
    return {name: config[name] for name in unset if config[name] != defaults[name].default}


def _candidate(scheduler: Any, kind: str) -> Counterpart | None:
    if kind == "edm":
        return _EDM
    if kind == "flow":  # the multistep solvers (UniPC, DEIS) and the Euler family state their shifts differently
        return _FLOW_SOLVER if scheduler.config.get("use_flow_sigmas") else _FLOW
    if type(scheduler).__name__.startswith("CogVideoX"):
        return _COGVIDEOX
    # RePaint's step needs an image and a mask: its pipeline runs no other scheduler
    parameters = inspect.signature(type(scheduler).step).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    return _DDIM if needed - {"self"} <= _PLAIN_STEP else None


def _written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
