"""The stochastic scheduler that stands in for one that cannot be steered, and a scheduler that a run leaves alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fk_reward.sampling.counterparts import counterpart
from fk_reward.sampling.stochasticity import NOT_STEERABLE, require_stochastic, takes_argument

logger = logging.getLogger(__name__)


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
    """`stochastic_scheduler`; where there is none a warning, and the scheduler itself, on which best of N can run."""
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
