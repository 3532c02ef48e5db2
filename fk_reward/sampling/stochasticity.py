"""Which schedulers add noise and keep the model's marginals, and what to use instead of the others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
from torch import Tensor

from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from fk_reward.sampling.x0_prediction import scheduler_name

CONSISTENCY_SAMPLERS = ("FlowMatchLCMScheduler", "LCMScheduler", "TCDScheduler")
"""Samplers that add noise to a predicted clean sample, which keeps the marginals where a distilled model predicts
samples, and shrinks each mode where a model predicts means. Choosing one of them says that the model is distilled."""

NOT_STEERABLE = (
    "No stochastic scheduler is known for its model, which therefore cannot be steered. A search that copies no "
    "particles runs on any scheduler: best of N, with search='best-of-n' or num_resamples=0."
)
"""The remedy where there is none."""

_PLAIN_STEP = {"model_output", "timestep", "sample"}
_LEVEL_SETTINGS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"),
    *("sigma_max", "sigma_min", "sigma_data", "shift", "flow_shift"),
)


def require_stochastic(scheduler: Any, *, eta: float | None = None) -> None:
    """Raise unless the scheduler's step adds noise of its own and keeps the model's marginals.

    Args:
        scheduler: a Diffusers scheduler.
        eta: the `eta` that its step will get; None stands for the default of its signature.

    Raises:
        ValueError: for a deterministic setting, one that is known to sample another distribution (`docs/schedulers.md`
            has the figures), or a scheduler that is not supported; the message names what to use.

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


def require_matching_steps(scheduler: Any) -> None:
    """Raise where DDIM's moves do not end at the timesteps at which the model is asked next.

    DDIM always goes down by `num_train_timesteps // num_inference_steps`, while timesteps that are spaced by
    `"trailing"` or `"linspace"` may lie further apart: with 600 steps on 1000 timesteps two thirds further, and the
    spread of a mode is then off by 22 %.

    Args:
        scheduler: after `set_timesteps`.

    Raises:
        ValueError: where the two differ by more than a tenth.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler(timestep_spacing="trailing")
        >>> scheduler.set_timesteps(50)
        >>> require_matching_steps(scheduler)
    """
    config, num_steps = scheduler.config, getattr(scheduler, "num_inference_steps", None)
    moves_by_division = scheduler_name(scheduler) in ("DDIMScheduler", "CogVideoXDPMScheduler")
    if not moves_by_division or not num_steps or config.get("timestep_spacing") == "leading":
        return
    apart, move = config.num_train_timesteps / num_steps, config.num_train_timesteps // num_steps
    if apart > 1.1 * move:
        fitting = max(n for n in range(1, num_steps + 1) if config.num_train_timesteps % n == 0)
        raise ValueError(
            f"{type(scheduler).__name__} with {num_steps} steps and {config.timestep_spacing!r} spacing moves by "
            f"{move} timesteps where they lie {apart:.3g} apart, and leaves too much noise. Use {fitting} steps, or "
            'timestep_spacing="leading".'
        )


def takes_argument(scheduler: Any, name: str) -> bool:
    """Whether `scheduler.step` has a parameter of this name; some schedulers have no `step`.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> takes_argument(DDIMScheduler(), "eta")
        True
    """
    step = getattr(scheduler, "step", None)
    return step is not None and name in step_signature(scheduler).parameters


def adds_noise_now(scheduler: Any) -> bool:
    """Whether the next call of `step` draws noise.

    Two-stage schedulers add it in the second stage only, GLASS draws it where a transition begins.

    Example:
        >>> from diffusers import KDPM2AncestralDiscreteScheduler
        >>> adds_noise_now(KDPM2AncestralDiscreteScheduler())
        False
    """
    return not getattr(scheduler, "state_in_first_order", False) and getattr(scheduler, "draws_now", True)


def require_single_steps(scheduler: Any, search: str) -> None:
    """Raise where a transition takes several steps, for searches that draw single steps again, or move them.

    Args:
        scheduler: a Diffusers scheduler.
        search: what asks, for the message.

    Raises:
        ValueError: for GLASS, where a particle inside a transition is more than the sample of a step.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> require_single_steps(DDIMScheduler(), "RolloverBudget")
    """
    if hasattr(scheduler, "transition_starts"):
        raise ValueError(
            f"A transition of {type(scheduler).__name__} takes several steps, of which {search} would change a single "
            "one: use FlowMatchSDEScheduler, or a search that leaves the moves to the scheduler, such as fk."
        )


def transition_starts(scheduler: Any, num_steps: int) -> tuple[int, ...]:
    """The steps of a run at which its transitions begin: every one, but of schedulers whose transitions take several.

    Args:
        scheduler: before the first step of the run.
        num_steps: calls of `step` that will be made.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> transition_starts(DDIMScheduler(), 3)
        (0, 1, 2)
    """
    starts = getattr(scheduler, "transition_starts", None)
    if starts is None:
        return tuple(range(num_steps))
    first = getattr(scheduler, "begin_index", None) or 0
    return tuple(start - first for start in starts if first <= start < first + num_steps)


def _why_refused(scheduler: Any, eta: float | None) -> str | None:
    name = scheduler_name(scheduler)
    if name is None:
        return (
            f"{type(scheduler).__name__} cannot be steered: copies of a particle would stay identical, or what its "
            f"noise does to the samples is not known here. {_remedy(scheduler)}"
        )
    for check in (_deterministic_setting, _wrong_setting):
        problem = check(scheduler, name, eta)
        if problem is not None:
            return f"{name} with {problem[0]} {problem[1]}"
    return None


def _remedy(scheduler: Any) -> str:
    """What to use instead of a scheduler that is not supported, as code."""
    found = counterpart(scheduler)
    if found is None:
        return NOT_STEERABLE
    eta = ", with eta=1.0" if found.scheduler is DDIMScheduler else ""
    return f"Use {found}{eta}. stochastic_scheduler(scheduler) of fk_reward.pipelines makes it.{_flow_hint(scheduler)}"


def _flow_hint(scheduler: Any) -> str:
    """What Diffusers itself has for flow models, with its arguments."""
    config = scheduler.config
    if "shift" not in config:
        return ""
    moving = ', use_dynamic_shifting=True, time_shift_type="exponential"' if config.get("use_dynamic_shifting") else ""
    return (
        " Where the pipeline passes no sigmas, use DPMSolverMultistepScheduler.from_config(scheduler.config, "
        'algorithm_type="sde-dpmsolver++", solver_order=2, use_flow_sigmas=True, prediction_type="flow_prediction", '
        f"flow_shift={config['shift']}{moving})."
    )


def _deterministic_setting(scheduler: Any, name: str, eta: float | None) -> tuple[str, str] | None:
    """The setting that makes it deterministic, and what follows."""
    config, remedy = scheduler.config, None
    setting = ""
    if name in ("DDIMScheduler", "TCDScheduler"):
        parameter = step_signature(scheduler).parameters.get("eta")
        eta = (0.0 if parameter is None else parameter.default) if eta is None else eta
        setting, remedy = f"eta={eta}", None if eta > 0 else "Pass eta=1.0."
    elif name.startswith(("DPMSolver", "EDMDPMSolver")) and not config.algorithm_type.startswith("sde-"):
        setting = f'algorithm_type="{config.algorithm_type}"'
        remedy = f'Use {name}.from_config(scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2).'
    elif name == "FlowMatchEulerDiscreteScheduler" and not config.stochastic_sampling:
        setting, remedy = "stochastic_sampling=False", _remedy(scheduler)
    if remedy is None:
        return None
    return setting, f"is deterministic: copies of a particle would stay identical for ever. {remedy}"


def _wrong_setting(scheduler: Any, name: str, eta: float | None) -> tuple[str, str] | None:
    """A stochastic setting under which it samples another distribution than the model's, and what follows."""
    if name == "FlowMatchEulerDiscreteScheduler":
        return "stochastic_sampling=True", _renoising(scheduler)
    config, order = scheduler.config, scheduler.config.get("solver_order", 1)
    multistep = name in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
    problems = (
        (
            eta is not None and eta > 1 and name in ("DDIMScheduler", "TCDScheduler"),
            f"eta={eta}",
            "adds more noise than a step has room for. Pass an eta in (0, 1].",
        ),
        (
            multistep and order > 2,
            f"solver_order={order}",
            "diverges or adds no noise in Diffusers' stochastic update of third order: use solver_order=2.",
        ),
        (
            name.startswith("DPMSolver") and config.get("use_beta_sigmas"),
            "use_beta_sigmas=True",
            "repeats timesteps, the first of which Diffusers skips: use use_karras_sigmas=True.",
        ),
        (
            name == "DDPMScheduler" and config.variance_type == "fixed_large_log",
            'variance_type="fixed_large_log"',
            'takes roots of negative numbers: use variance_type="fixed_large".',
        ),
        (
            _starts_without_signal(scheduler) and config.prediction_type == "epsilon",
            'rescale_betas_zero_snr=True and prediction_type="epsilon"',
            'divides by zero at its first step: such models predict v, prediction_type="v_prediction".',
        ),
    )
    return next(((setting, consequence) for wrong, setting, consequence in problems if wrong), None)


def _renoising(scheduler: Any) -> str:
    return (
        "adds noise to a predicted mean, which shrinks every mode (spread .20 for .30, however many steps). "
        f"{_remedy(scheduler)} For a distilled model, whose predictions are samples, use "
        "FlowMatchLCMScheduler.from_config(scheduler.config), which takes the same step."
    )


def _starts_without_signal(scheduler: Any) -> bool:
    """Whether the alpha-bar of the first timestep is 0; `"leading"` spacing never begins at the last timestep."""
    if not scheduler.config.get("rescale_betas_zero_snr") or scheduler.config.get("timestep_spacing") == "leading":
        return False
    return float(scheduler.alphas_cumprod[-1]) == 0


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
