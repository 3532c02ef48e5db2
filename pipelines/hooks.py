"""Hooks into the calls of a pipeline's networks and methods, for the time of one steered call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

DENOISERS = ("unet", "transformer", "decoder", "controlnet")
"""Attributes of the networks that see the particles at every step. `decoder` is that of cascades, whose steps make the
latents of the image."""


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
def wrap_method(owner: object, name: str, around: Callable[..., Any]) -> Iterator[None]:
    """Let `owner.name(...)` run `around(original, ...)` inside the block; afterwards all is as before.

    This is for what is no `forward`: a scheduler's `step`, an autoencoder's `decode`, a pipeline's `progress_bar`.
    Diffusers' hooks know modules and their `forward` only.

    Example:
        >>> from types import SimpleNamespace
        >>> owner = SimpleNamespace(double=lambda x: 2 * x)
        >>> with wrap_method(owner, "double", lambda original, x: original(x) + 1):
        ...     owner.double(3)
        7
        >>> owner.double(3)
        6
    """
    original, had_its_own = getattr(owner, name), name in vars(owner)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    functools.update_wrapper(wrapper, original, updated=())
    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        # other code may have put its own method there inside the block: then that one stays
        if vars(owner).get(name) is wrapper:
            if had_its_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


@contextmanager
def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Let calls of a module run `around(forward, ...)` inside the block; afterwards all is as before.

    `around` is a hook of Diffusers, so it runs outside the hooks that are there already (feature caches, offloading),
    and stays when one of them removes itself during the call, as prefetching group offload does after the first step.

    Example:
        >>> layer = nn.Identity()
        >>> with wrap_forward(layer, lambda forward, x: forward(x) + 1):
        ...     layer(1)
        2
        >>> layer(1)
        1
    """
    if (compiled := _compiled_call(module)) is not None:
        # a hook on `forward` would be traced with it, and break the graph at every call
        with wrap_method(module, compiled, around):
            yield
        return
    with hooked(module, WrapForward(around)):
        yield


@contextmanager
def hooked(module: nn.Module, hook: WrapForward) -> Iterator[None]:
    """Put a hook around the `forward` of a module inside the block; afterwards all is as before."""
    had_registry, own_forward = "_diffusers_hook" in vars(module), vars(module).get("forward")
    registry = hook.register(module)
    try:
        yield
    finally:
        hook.remove(module)
        if not had_registry and not registry.hooks:
            del module._diffusers_hook
        # the registry puts the method of the class back as an attribute of the instance
        if own_forward is None and vars(module).get("forward") == type(module).forward.__get__(module):
            del module.forward


def is_wrapper(hook: ModelHook) -> bool:
    """Whether a hook is one of `wrap_forward`, which keeps nothing from one call to the next."""
    return isinstance(hook, WrapForward)


def _compiled_call(module: nn.Module) -> str | None:
    """The attribute behind which compiled code begins; None for a module that is not compiled as a whole."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "_compiled_call_impl"  # by `module.compile()`
    return "forward" if is_compiled_module(module) else None  # by `torch.compile(module)`


class WrapForward(ModelHook):
    """A function around the `forward` of a module, in the module's `HookRegistry`.

    Args:
        around: gets `forward` and the arguments.
    """

    def __init__(self, around: Callable[..., Any]) -> None:
        super().__init__()
        self._around: Callable[..., Any] | None = around
        self._name = f"fk_reward_{id(self)}"  # a registry takes each name once
        self._forward: Any = None
        self._entry: Any = None

    def register(self, module: nn.Module) -> HookRegistry:
        """Put this hook around the others; returns their registry."""
        before, registry = module.forward, HookRegistry.check_if_exists_or_initialize(module)
        registry.register_hook(self, self._name)
        functools.update_wrapper(module.forward, before)  # pipelines read its signature, which older registries hide
        self._forward, self._entry = self.fn_ref.forward, module.forward
        return registry

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before each call: see that `new_forward` is what will run."""
        self._repair()
        return args, kwargs

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Instead of `forward`."""
        if self._around is None:  # removed, but accelerate has kept the module's `forward` of inside the block
            return self.fn_ref.original_forward(*args, **kwargs)
        return self._around(self.fn_ref.original_forward, *args, **kwargs)

    def remove(self, module: nn.Module) -> None:
        """Take this hook out; others that came later stay."""
        self._repair()
        registry = HookRegistry.check_if_exists_or_initialize(module)
        place, current = registry._hook_order.index(self._name), module.forward
        outer = registry._fn_refs[place + 1] if place + 1 < len(registry._fn_refs) else None
        kept = None if outer is None or outer.original_forward is None else outer.forward
        registry.remove_hook(self._name, recurse=False)
        self._around = None
        if outer is not None and kept is not None:
            outer.forward, outer.original_forward = kept, outer.forward  # as in `_repair`
        if outer is None and current is not self._entry:
            # pipelines with enable_model_cpu_offload put new hooks of accelerate on their models at their end
            module.forward = current

    def _repair(self) -> None:
        """Undo what `HookRegistry.remove_hook` does to the next hook (diffusers 0.42): it overwrites its `new_forward`.

        It should have written the `forward` that `new_forward` calls.
        """
        if self.fn_ref.forward is not self._forward:
            self.fn_ref.original_forward, self.fn_ref.forward = self.fn_ref.forward, self._forward
