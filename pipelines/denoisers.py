"""The networks of a pipeline that see the particles at every step."""

from __future__ import annotations

from typing import Any

from torch import nn

DENOISERS = ("unet", "transformer", "decoder", "controlnet")
"""`decoder` is that of cascades, whose steps make the latents of the image."""


def find_denoisers(pipe: Any) -> list[nn.Module]:
    """The denoiser of a Diffusers pipeline, and its ControlNet where it has one; empty where none is known.

    Example:
        >>> from types import SimpleNamespace
        >>> len(find_denoisers(SimpleNamespace(unet=nn.Linear(1, 1), controlnet=None)))
        1
    """
    return [module for name in DENOISERS if isinstance(module := getattr(pipe, name, None), nn.Module)]


def main_denoiser(pipe: Any) -> nn.Module | None:
    """The denoiser of a pipeline without its ControlNet; None where none is known.

    Example:
        >>> from types import SimpleNamespace
        >>> main_denoiser(SimpleNamespace(controlnet=nn.Linear(1, 1))) is None
        True
    """
    return next((module for module in find_denoisers(pipe) if module is not getattr(pipe, "controlnet", None)), None)
