"""What a pipeline has to be, to be steered."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

_AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
"""Names of the decoder of latents in the pipelines of Diffusers; one without any draws pixels."""


def check_pipeline(pipe: Any) -> None:
    """Raise for what cannot be wrapped.

    Raises:
        TypeError: for what is no Diffusers pipeline, or one without a scheduler.

    Example:
        >>> check_pipeline("sdxl")
        Traceback (most recent call last):
        TypeError: pipe should be a Diffusers pipeline with a scheduler, got str.
    """
    if not isinstance(pipe, DiffusionPipeline) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"pipe should be a Diffusers pipeline with a scheduler, got {type(pipe).__name__}.")


def has_latents(pipe: Any) -> bool:
    """Whether the pipeline denoises latents, which an autoencoder turns into pixels; DeepFloyd IF denoises pixels.

    Example:
        >>> from types import SimpleNamespace
        >>> has_latents(SimpleNamespace(unet=None)), has_latents(SimpleNamespace(movq="decoder"))
        (False, True)
    """
    return any(getattr(pipe, name, None) is not None for name in _AUTOENCODERS)
