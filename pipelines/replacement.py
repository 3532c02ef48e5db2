"""A function put around a method of one object for the time of a `with` block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
