"""Which models have noise levels that come from a schedule of betas: DDIM, DPM-Solver, LCM, ... solve them all."""

from __future__ import annotations

from typing import Any


def has_betas(scheduler: Any) -> bool:
    """Whether the model that came with this scheduler has a schedule of betas, in place of flow-matching or EDM levels.

    Some schedulers serve both kinds and keep their betas in the config of a flow model, too.

    Example:
        >>> from diffusers import EulerDiscreteScheduler, UniPCMultistepScheduler
        >>> has_betas(EulerDiscreteScheduler()), has_betas(UniPCMultistepScheduler())
        (True, True)
        >>> has_betas(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
        False
    """
    config = scheduler.config
    if type(scheduler).__name__.startswith(("FlowMatch", "EDM")) or config.get("use_flow_sigmas"):
        return False
    return config.get("beta_schedule") is not None or config.get("trained_betas") is not None
