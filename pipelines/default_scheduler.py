"""The stochastic scheduler that stands in for a deterministic one when the user chose none."""

from __future__ import annotations

import logging
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from fk_reward.pipelines.beta_schedules import has_betas
from fk_reward.stochasticity import require_stochastic, takes_argument

logger = logging.getLogger(__name__)


def stochastic_scheduler(scheduler: Any) -> Any:
    """A scheduler that can be steered, for the same model.

    A scheduler that is stochastic already (DDIM counts: it is run with eta 1) is returned as it is. Otherwise: DDIM,
    the setting of Singhal et al. (2025), for models that predict noise, v or the sample; the SDE variant of
    DPM-Solver++ for EDM models and for flow models that came with a multistep solver (DPM-Solver, UniPC, DEIS); the
    stochastic Euler sampler for other flow-matching models.

    Example:
        >>> from diffusers import EulerDiscreteScheduler
        >>> type(stochastic_scheduler(EulerDiscreteScheduler())).__name__
        'DDIMScheduler'
    """
    try:
        require_stochastic(scheduler, eta=1.0 if takes_argument(scheduler, "eta") else None)
    except ValueError:
        replacement = _replacement(scheduler)
        logger.info(
            "%s cannot be steered (deterministic, or not supported): replaced by %s. scheduler=... chooses another.",
            type(scheduler).__name__,
            type(replacement).__name__,
        )
        return replacement
    return scheduler


def _replacement(scheduler: Any) -> Any:
    config = scheduler.config
    name = type(scheduler).__name__
    if name.startswith("EDM"):
        return EDMDPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++", solver_order=2)
    if config.get("use_flow_sigmas"):
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    if name.startswith("FlowMatch"):
        return FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=True)
    if not has_betas(scheduler):
        raise ValueError(
            f"No stochastic scheduler is known for {name}; pass scheduler=... with one that can be steered."
        )
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
