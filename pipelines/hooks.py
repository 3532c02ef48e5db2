"""Hooks into the calls of a pipeline's networks and methods, for the time of one steered call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def replaced(owner: object, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Let `owner.name(...)` run `around(original, ...)` inside the block; afterwards all is as before.

    What stands there already (a module's `forward` may be an offloading hook of accelerate) is the original. Where it
    was exchanged inside the block, as pipelines that offload do at their end, the new one stays.

    Example:
        >>> from types import SimpleNamespace
        >>> owner = SimpleNamespace(double=lambda x: 2 * x)
        >>> with replaced(owner, "double", lambda original, x: original(x) + 1):
        ...     owner.double(3)
        7
        >>> owner.double(3)
        6
    """
    original, had_its_own = getattr(owner, name), name in vars(owner)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    functools.update_wrapper(replacement, original, updated=())
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if vars(owner).get(name) is replacement:
            if had_its_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def call_name(module: nn.Module) -> str:
    """The attribute that calling a module runs: `forward`, or what `module.compile()` has put before it.

    Example:
        >>> call_name(nn.Linear(1, 1))
        'forward'
    """
    return "forward" if getattr(module, "_compiled_call_impl", None) is None else "_compiled_call_impl"
