"""Schedulers of a pipeline: solver presets, stochastic counterparts, and a scheduler that a run leaves unchanged."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

from fk_reward.sampling.flow_match_glass import FlowMatchGLASSScheduler
from fk_reward.sampling.stochasticity import (
    NOT_STEERABLE,
    counterpart,
    lost_settings,
    noise_levels,
    require_stochastic,
    takes_argument,
)
from fk_reward.text import did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How a trajectory is solved.

    Attributes:
        scheduler: class of the scheduler.
        num_inference_steps: number of steps, unless the call names another.
        config: settings of the scheduler; the others are those of the model's own scheduler (betas, prediction type,
            ...).
        eta: noise of each step, unless the call names another; None where the scheduler's step takes none.
        guidance_scale: unless the call names another; 1 is no classifier-free guidance. None for the pipeline's
            default. Models that read the guidance as an input (`time_cond_proj_dim` in the UNet's config) always keep
            the pipeline's default.
        timesteps: those of a model that was distilled for them, as many as steps; empty for the scheduler's own. A call
            with another number of steps is refused.
        call: other arguments of the pipeline's call, unless the call names them.

    Raises:
        ValueError: for a setting that the scheduler does not have, no steps, or another number of timesteps.

    Example:
        >>> solver = Solver(scheduler=DDIMScheduler, num_inference_steps=30, eta=0.5)
        >>> type(solver.build(LCMScheduler())).__name__
        'DDIMScheduler'
    """

    scheduler: type[Any]
    num_inference_steps: int
    config: Mapping[str, Any] = field(default_factory=dict)
    eta: float | None = None
    guidance_scale: float | None = None
    timesteps: Sequence[int] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what Diffusers would ignore."""
        unknown = sorted(self.config.keys() - inspect.signature(self.scheduler).parameters.keys())
        if unknown:
            raise ValueError(f"{self.scheduler.__name__} has no setting {unknown[0]!r}.")
        if self.eta is not None and not takes_argument(self.scheduler, "eta"):
            raise ValueError(f"The step of {self.scheduler.__name__} takes no eta; leave it out.")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps should be at least 1, got {self.num_inference_steps}.")
        if self.timesteps and len(self.timesteps) != self.num_inference_steps:
            raise ValueError(
                f"timesteps should be {self.num_inference_steps}, one for each step, got {len(self.timesteps)}."
            )

    def build(self, scheduler: Any) -> Any:
        """Build the scheduler of this solver for the model of another scheduler.

        Raises:
            ValueError: where its noise levels are not those of the model: a solver for schedules of betas and a
                flow-matching model, a schedule that the new scheduler cannot keep (CogVideoX), ...
        """
        config = {**lost_settings(scheduler, self.scheduler), **self.config}
        built = self.scheduler.from_config(scheduler.config, **config)
        own, levels = noise_levels(scheduler), noise_levels(built)
        if own is None or levels is None or not own.equal(levels):
            raise ValueError(
                f"{self.scheduler.__name__} has other noise levels than the model, which came with "
                f"{type(scheduler).__name__}. Leave solver out: FKSteeringPipeline.from_pretrained takes the "
                "stochastic counterpart of the model's own scheduler; num_inference_steps goes into the call."
            )
        return built

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """Arguments of the pipeline's call, those that the caller does not give.

        Example:
            >>> Solver(scheduler=LCMScheduler, num_inference_steps=4, guidance_scale=1.0).arguments(pipe=None)
            {'num_inference_steps': 4, 'guidance_scale': 1.0}
        """
        unet = getattr(pipe, "unet", None)
        reads_guidance = unet is not None and unet.config.get("time_cond_proj_dim") is not None
        guidance_scale = None if reads_guidance else self.guidance_scale
        arguments = {
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
            "guidance_scale": guidance_scale,
            "timesteps": list(self.timesteps) or None,
            **self.call,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def complete(self, pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, with those that it does not give.

        Raises:
            ValueError: for another number of steps than the solver has timesteps.

        Example:
            >>> SOLVERS["tlcm-2"].complete(None, {"guidance_scale": 2.0})["timesteps"]
            [999, 499]
        """
        steps = arguments.get("num_inference_steps")
        own_levels = any(arguments.get(name) is not None for name in ("timesteps", "sigmas"))
        if self.timesteps and not own_levels and steps not in (None, self.num_inference_steps):
            raise ValueError(
                f"The solver's {self.num_inference_steps} timesteps ({', '.join(map(str, self.timesteps))}) are those "
                f"that its model was distilled for, and the call asks for {steps} steps: leave num_inference_steps "
                f"out, take the solver with {steps} steps where there is one, or pass timesteps=[...]."
            )
        given = {name: value for name, value in arguments.items() if value is not None}
        own = self.arguments(pipe)
        if own_levels:
            own = {name: value for name, value in own.items() if name not in ("timesteps", "num_inference_steps")}
        return {**arguments, **own, **given}


@dataclass(frozen=True)
class InstalledSolver:
    """A solver whose scheduler a pipeline runs.

    Attributes:
        solver: the solver.
        scheduler: what it built.
        replaced: the pipeline's own scheduler.
    """

    solver: Solver
    scheduler: Any
    replaced: Any


def _ddim(num_steps: int) -> Solver:
    """Singhal et al. (2025): DDIM with eta 1; 100 steps are theirs."""
    config = {"clip_sample": False, "set_alpha_to_one": False}
    return Solver(scheduler=DDIMScheduler, num_inference_steps=num_steps, config=config, eta=1.0)


def _sde_dpm_solver(num_steps: int) -> Solver:
    """Lu et al. (2022), second order. Levels of Karras et al. (2022), which fall early: predictions clear early."""
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}
    return Solver(scheduler=DPMSolverMultistepScheduler, num_inference_steps=num_steps, config=config)


def _lcm(num_steps: int) -> Solver:
    """Luo et al. (2023): no classifier-free guidance, which is distilled into the model."""
    return Solver(scheduler=LCMScheduler, num_inference_steps=num_steps, guidance_scale=1.0)


def _tcd(num_steps: int) -> Solver:
    """Zheng et al. (2024): the noise (their gamma) and the absent guidance are the authors' choice."""
    return Solver(scheduler=TCDScheduler, num_inference_steps=num_steps, eta=0.3, guidance_scale=1.0)


def _glass(num_steps: int) -> Solver:
    """Holderrieth et al. (2025), for flow models: transitions of four calls of the denoiser."""
    return Solver(scheduler=FlowMatchGLASSScheduler, num_inference_steps=num_steps)


def _distar() -> Solver:
    """Luo et al. (2024), Diff-Instruct*: LCM's scheduler at the one timestep 399, without guidance.

    README.md of github.com/pkulwj1994/diff_instruct_star, for XDG-XHS/distar_long_1step.
    """
    return Solver(scheduler=LCMScheduler, num_inference_steps=1, guidance_scale=0.0, timesteps=(399,))


_TLCM_LEVELS = (999, 874, 749, 624, 499, 374, 249, 124, 0)
_TLCM_PLACES = {
    2: (0, 4),
    3: (0, 4, 7),
    4: (0, 2, 4, 7),
    5: (0, 2, 4, 6, 7),
    6: (0, 2, 4, 5, 6, 7),
    7: (0, 2, 3, 4, 5, 6, 7),
    8: (0, 1, 2, 3, 4, 5, 6, 7),
}


def _tlcm(num_steps: int) -> Solver:
    """Xie et al. (2024), TLCM (MLCM before): places in linspace(999, 0, 9), without guidance.

    `inference.py` of github.com/OPPO-Mente-Lab/TLCM: its last place, 0, is never asked. It has no boundary scaling,
    which at these timesteps differs from 1 by less than 1e-6. All timesteps are on the grid of 1000 original steps.
    """
    timesteps = tuple(_TLCM_LEVELS[place] for place in _TLCM_PLACES[num_steps])
    config = {"original_inference_steps": 1000}
    return Solver(
        scheduler=LCMScheduler,
        num_inference_steps=num_steps,
        config=config,
        guidance_scale=1.0,
        timesteps=timesteps,
    )


def _turbo(num_steps: int) -> Solver:
    """Sauer et al. (2023), SD-Turbo and SDXL-Turbo: trailing timesteps (999 is the first), guidance 0.

    As Diffusers' page on SDXL-Turbo has it. The scheduler is that of stabilityai/sdxl-turbo.
    """
    config = {"timestep_spacing": "trailing"}
    return Solver(
        scheduler=EulerAncestralDiscreteScheduler,
        num_inference_steps=num_steps,
        config=config,
        guidance_scale=0.0,
    )


def _schnell(scheduler: type[Any]) -> Solver:
    """FLUX.1-schnell: 4 steps at the levels 1, .75, .5, .25, no guidance, 256 tokens, as its model card has it."""
    return Solver(scheduler=scheduler, num_inference_steps=4, guidance_scale=0.0, call={"max_sequence_length": 256})


SOLVERS: dict[str, Solver] = {
    "ddim-50": _ddim(50),
    "ddim-100": _ddim(100),
    "sde-dpmsolver++-20": _sde_dpm_solver(20),
    "sde-dpmsolver++-25": _sde_dpm_solver(25),
    "lcm-4": _lcm(4),
    "lcm-8": _lcm(8),
    "tcd-4": _tcd(4),
    "tcd-8": _tcd(8),
    "glass-28": _glass(28),
    "glass-48": _glass(48),
    "distar-1": _distar(),
    **{f"tlcm-{num_steps}": _tlcm(num_steps) for num_steps in _TLCM_PLACES},
    "turbo-1": _turbo(1),
    "turbo-4": _turbo(4),
    "schnell-4": _schnell(FlowMatchLCMScheduler),
    "schnell-ode-4": _schnell(FlowMatchEulerDiscreteScheduler),
}
"""Presets by name. `glass-*` and `schnell-*` are for flow models (SD3, Flux), the others for models with a schedule of
betas. `lcm-*`, `tcd-*`, `distar-1`, `tlcm-*`, `turbo-*` and `schnell-*` need a model, or a LoRA, that was distilled for
them: naming one says that it was. With any other model they shrink every mode of the distribution
(`docs/schedulers.md`). `schnell-4` puts new noise on the predicted sample at the published levels, which lets copies
differ; `schnell-ode-4` is the published sampler, for searches that copy nobody."""


def resolve_solver(solver: str | Solver | None) -> Solver | None:
    """A solver by name; one that is a `Solver` already, or None, is returned as it is.

    Raises:
        ValueError: for an unknown name; the message suggests close ones.
        TypeError: for anything else.

    Example:
        >>> resolve_solver("ddim-100").num_inference_steps
        100
    """
    if solver is None or isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver should be a name, a Solver or None, got {type(solver).__name__}.")
    if solver not in SOLVERS:
        hint = did_you_mean(solver, SOLVERS)
        raise ValueError(f"Unknown solver {solver!r}.{hint} Known are {', '.join(map(repr, SOLVERS))}.")
    return SOLVERS[solver]


def stochastic_scheduler(scheduler: Any) -> Any:
    """A scheduler that can be steered, for the same model and at the same noise levels.

    A scheduler that can be steered already (DDIM counts: it is run with eta 1) is returned as it is. Otherwise: DDIM,
    the setting of Singhal et al. (2025), for models that predict noise, v or the sample; `FlowMatchSDEScheduler` for
    flow-matching models, and `DPMSolverMultistepScheduler` with `"sde-dpmsolver++"` for those that came with a
    multistep solver (DPM-Solver, UniPC, DEIS); its EDM variant for EDM models; `CogVideoXDPMScheduler` for
    CogView3-Plus. A warning says what was replaced.

    Raises:
        ValueError: where no stochastic scheduler with these noise levels is known.

    Example:
        >>> from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
        >>> type(stochastic_scheduler(EulerDiscreteScheduler())).__name__
        'DDIMScheduler'
        >>> type(stochastic_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))).__name__
        'FlowMatchSDEScheduler'
    """
    if _can_be_steered(scheduler):
        return scheduler
    found = counterpart(scheduler)
    name = type(scheduler).__name__
    if found is None:
        raise ValueError(f"{name} cannot be steered. {NOT_STEERABLE}")
    replacement = found.build(scheduler)
    logger.warning(
        "%s cannot be steered (it is deterministic, or samples another distribution than the model's). It was replaced "
        "by %s. To choose another, pass scheduler=... to from_pretrained or write pipe.scheduler = ...",
        name,
        found,
    )
    return replacement


def steerable_if_known(scheduler: Any) -> Any:
    """`stochastic_scheduler`; where none is known, warn and keep the scheduler, on which best of N can run."""
    try:
        return stochastic_scheduler(scheduler)
    except ValueError as error:
        logger.warning("%s It was kept.", error)
        return scheduler


@contextmanager
def unchanged(scheduler: Any) -> Iterator[None]:
    """Whatever a run changes in a scheduler is as before when the block ends, also after an error.

    Runs leave timesteps and a history of latents behind, and `DPMSolverMultistepScheduler` writes the shift of a call
    with `mu` (Flux) into its own config, where the next call would find it.

    Example:
        >>> from diffusers import DPMSolverMultistepScheduler
        >>> scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, use_dynamic_shifting=True, flow_shift=3.0)
        >>> with unchanged(scheduler):
        ...     scheduler.set_timesteps(4, mu=1.15)
        >>> scheduler.config.flow_shift, scheduler.num_inference_steps
        (3.0, None)
    """
    owners = (scheduler, scheduler.config)  # a config's settings are attributes, too, which Diffusers reads and writes
    kept = [(owner, {name: _shallow(value) for name, value in vars(owner).items()}) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in kept:
            vars(owner).clear()
            vars(owner).update(attributes)


def _can_be_steered(scheduler: Any) -> bool:
    try:
        require_stochastic(scheduler, eta=1.0 if takes_argument(scheduler, "eta") else None)
    except ValueError:
        return False
    return True


def _shallow(value: Any) -> Any:
    """Solvers keep their history in a list, in which they replace the entries."""
    return type(value)(value) if type(value) in (list, dict) else value
