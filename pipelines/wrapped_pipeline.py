"""What a pipeline has to be, to be steered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from fk_reward.pipelines.pipeline_proxy import PipelineProxy

_AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
"""Names of the decoder of latents in the pipelines of Diffusers; one without any draws pixels."""

_NEVER_STEPPING = {"StableDiffusionParadigmsPipeline": "StableDiffusionPipeline"}
"""Pipelines that solve all steps in parallel and never call `scheduler.step`, with the one to wrap in their place."""

PROMPTS_TOGETHER = frozenset({"StableDiffusionPanoramaPipeline"})
"""Pipelines whose prompts influence one another in a batch of the pipeline itself, whatever the particles."""


def check_pipeline(pipe: Any) -> None:
    """Raise for what cannot be wrapped.

    Raises:
        TypeError: for what is no Diffusers pipeline, or one without a scheduler or that never calls its scheduler.

    Example:
        >>> check_pipeline("sdxl")
        Traceback (most recent call last):
        TypeError: pipe should be a Diffusers pipeline with a scheduler, got str. ...
    """
    name = type(pipe).__name__
    if name in _NEVER_STEPPING:
        raise TypeError(
            f"{name} cannot be steered: it solves its steps in parallel and never calls scheduler.step. Wrap "
            f"{_NEVER_STEPPING[name]} in its place."
        )
    if isinstance(pipe, DiffusionPipeline):
        if hasattr(pipe, "scheduler"):
            return
        raise TypeError(f"{name} cannot be steered: it has no scheduler of that name. Wrap a pipeline with one.")
    wanted = "pipe should be a Diffusers pipeline with a scheduler"
    if isinstance(pipe, PipelineProxy):
        raise TypeError(f"{wanted}, got one that is wrapped already: pass its .pipe, the pipeline that it wraps.")
    if isinstance(pipe, type):
        raise TypeError(f"{wanted}, got the class {pipe.__name__}: pass {pipe.__name__}.from_pretrained(...).")
    hint = " FKSteeringPipeline.from_pretrained loads one by name." if isinstance(pipe, str | Path) else ""
    raise TypeError(f"{wanted}, got {name}.{hint}")


def check_scheduler(scheduler: Any) -> None:
    """Raise for what is no scheduler.

    Raises:
        TypeError: for a class, a name, or anything else without a step.

    Example:
        >>> check_scheduler("ddim")
        Traceback (most recent call last):
        TypeError: scheduler should be a Diffusers scheduler, got 'ddim'. ...
    """
    if isinstance(scheduler, type) or not (callable(getattr(scheduler, "step", None)) and hasattr(scheduler, "config")):
        got = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else repr(scheduler)
        raise TypeError(
            f"scheduler should be a Diffusers scheduler, got {got}. Make one for this model: "
            "DDIMScheduler.from_config(pipe.scheduler.config)."
        )


def has_latents(pipe: Any) -> bool:
    """Whether the pipeline denoises latents, which an autoencoder turns into pixels; DeepFloyd IF denoises pixels.

    Example:
        >>> from types import SimpleNamespace
        >>> has_latents(SimpleNamespace(unet=None)), has_latents(SimpleNamespace(movq="decoder"))
        (False, True)
    """
    return any(getattr(pipe, name, None) is not None for name in _AUTOENCODERS)


def set_scheduler(pipe: Any, scheduler: Any) -> None:
    """Write a pipeline's scheduler, also in the stages that step with it.

    A combined pipeline hands its scheduler to its stages when it is built, and keeps others (of a prior) beside it.

    Args:
        pipe: the pipeline.
        scheduler: the new one.
    """
    others = {id(part) for name, part in pipe.components.items() if name != "scheduler"}
    for stage in vars(pipe).values():
        if isinstance(stage, DiffusionPipeline) and hasattr(stage, "scheduler") and id(stage.scheduler) not in others:
            stage.scheduler = scheduler
    pipe.scheduler = scheduler
