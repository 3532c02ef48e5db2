"""The networks of a pipeline that see the particles at every step."""

from __future__ import annotations

from typing import Any

from torch import nn

DENOISERS = ("unet", "transformer", "controlnet")


def find_denoisers(pipe: Any) -> list[nn.Module]:
    """The denoiser of a Diffusers pipeline, and its ControlNet where it has one; empty where none is known.

    Example:
        >>> from types import SimpleNamespace
        >>> len(find_denoisers(SimpleNamespace(unet=nn.Linear(1, 1), controlnet=None)))
        1
    """
    return [module for name in DENOISERS if (module := getattr(pipe, name, None)) is not None]


def main_denoiser(pipe: Any) -> nn.Module | None:
    """The UNet or transformer of a pipeline; None where it has neither.

    Example:
        >>> from types import SimpleNamespace
        >>> main_denoiser(SimpleNamespace(controlnet=nn.Linear(1, 1))) is None
        True
    """
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
