"""Which schedulers move their samples with fresh noise. The others leave copies of a particle identical for ever."""

from __future__ import annotations

import inspect
from typing import Any

from fk_reward.x0_prediction import X0_PREDICTIONS, scheduler_name

_USE_DDIM = (
    "Use DDIMScheduler.from_config(scheduler.config) with eta=1.0, or DPMSolverMultistepScheduler with "
    'algorithm_type="sde-dpmsolver++".'
)


def require_stochastic(scheduler: Any, *, eta: float | None = None) -> None:
    """Raise unless the scheduler's step adds noise of its own.

    Args:
        scheduler: a Diffusers scheduler.
        eta: the `eta` that its step will get; None stands for the default of its signature.

    Raises:
        ValueError: for a deterministic setting or a scheduler that is not supported; the message names what to use.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> require_stochastic(DDIMScheduler(), eta=1.0)
        >>> require_stochastic(DDIMScheduler(), eta=0.0)
        Traceback (most recent call last):
        ...
        ValueError: DDIMScheduler with eta=0.0 is deterministic: ... Pass eta=1.0.
    """
    reason = _why_refused(scheduler, eta)
    if reason is not None:
        raise ValueError(reason)


def step_signature(scheduler: Any) -> inspect.Signature:
    """The signature of `scheduler.step`; of a subclass that hands `*args, **kwargs` on, that of the class it extends.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> class Logged(DDIMScheduler):
        ...     def step(self, *args, **kwargs):
        ...         return super().step(*args, **kwargs)
        >>> list(step_signature(Logged()).parameters)[:4]
        ['model_output', 'timestep', 'sample', 'eta']
    """
    own = inspect.signature(scheduler.step)
    if "step" in vars(scheduler) or not _is_open(own):  # an attribute of the instance has been made by `steer`
        return own
    inherited = [vars(cls)["step"] for cls in type(scheduler).__mro__ if "step" in vars(cls)]
    bound = (inspect.signature(step.__get__(scheduler)) for step in inherited)
    return next((signature for signature in bound if not _is_open(signature)), own)


def _is_open(signature: inspect.Signature) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(parameter.kind in kinds for parameter in signature.parameters.values())


def takes_argument(scheduler: Any, name: str) -> bool:
    """Whether `scheduler.step` has a parameter of this name.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> takes_argument(DDIMScheduler(), "eta")
        True
    """
    return name in step_signature(scheduler).parameters


def adds_noise_now(scheduler: Any) -> bool:
    """Whether the next call of `step` ends with noise: two-stage schedulers add it in the second stage only.

    Example:
        >>> from diffusers import KDPM2AncestralDiscreteScheduler
        >>> adds_noise_now(KDPM2AncestralDiscreteScheduler())
        False
    """
    return not getattr(scheduler, "state_in_first_order", False)


def _why_refused(scheduler: Any, eta: float | None) -> str | None:
    name = scheduler_name(scheduler)
    if name is None:
        return (
            f"{type(scheduler).__name__} cannot be steered: it is deterministic, so that copies of a particle would "
            f"stay identical, or not supported yet. {_USE_DDIM} Supported: {', '.join(sorted(X0_PREDICTIONS))}."
        )
    setting, remedy = _deterministic_setting(scheduler, name, eta)
    if not setting:
        return None
    return f"{name} with {setting} is deterministic: copies of a particle would stay identical for ever. {remedy}"


def _deterministic_setting(scheduler: Any, name: str, eta: float | None) -> tuple[str, str]:
    """The setting that makes it deterministic and the remedy; two empty strings where it is stochastic."""
    config = scheduler.config
    if name in ("DDIMScheduler", "TCDScheduler"):
        parameter = step_signature(scheduler).parameters.get("eta")
        eta = (0.0 if parameter is None else parameter.default) if eta is None else eta
        return ("", "") if eta > 0 else (f"eta={eta}", "Pass eta=1.0.")
    if name.startswith(("DPMSolver", "EDMDPMSolver")):
        return _dpm_solver_setting(config, name)
    if name == "FlowMatchEulerDiscreteScheduler" and not config.stochastic_sampling:
        return "stochastic_sampling=False", f"Use {name}.from_config(scheduler.config, stochastic_sampling=True)."
    return "", ""


def _dpm_solver_setting(config: Any, name: str) -> tuple[str, str]:
    if not config.algorithm_type.startswith("sde-"):
        remedy = f'Use {name}.from_config(scheduler.config, algorithm_type="sde-dpmsolver++").'
        return f'algorithm_type="{config.algorithm_type}"', remedy
    if name.startswith("EDM") and config.solver_order > 2:
        return f"solver_order={config.solver_order}", "Its third-order update adds no noise: use solver_order=2."
    return "", ""
