"""What `FKSteeringPipeline` shows of the pipeline that it wraps: attributes read and write through."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from fk_reward.pipelines.batch_sizes import batch_size_fields
from fk_reward.search.feynman_kac import config_fields
from fk_reward.user_text import did_you_mean


class PipelineProxy:
    """Reads from and writes to a wrapped pipeline what it does not have itself.

    A subclass keeps the wrapped pipeline in `_pipe`, names its private attributes in `_own`, and makes properties of
    its public ones. A name that neither of the two objects has cannot be written: it would be a misspelt setting that
    nobody ever reads.

    Example:
        >>> class Loud(PipelineProxy):
        ...     def __init__(self, pipe):
        ...         self._pipe = pipe
        >>> from types import SimpleNamespace
        >>> loud = Loud(SimpleNamespace(unet="a U-Net"))
        >>> loud.unet = "another"
        >>> loud._pipe.unet, "unet" in dir(loud)
        ('another', True)
        >>> loud.unte = "a third"
        Traceback (most recent call last):
        AttributeError: Neither Loud nor SimpleNamespace has an attribute 'unte'. Did you mean 'unet'? ...
    """

    _own: frozenset[str] = frozenset({"_pipe"})
    _pipe: Any

    def __getattr__(self, name: str) -> Any:
        # Before __init__ has run (copy, pickle) there is nothing to read through to; and the wrapped pipeline's
        # __reduce__, __deepcopy__, ... would copy it in place of this object.
        if name in self._own or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(self._pipe, name)
        except AttributeError as error:
            if name in (*config_fields(), *batch_size_fields()):
                raise AttributeError(self._remedy(name)) from error
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        elif self._can_write_through(name):
            setattr(self._pipe, name, value)
        else:
            raise AttributeError(self._remedy(name))

    def __delattr__(self, name: str) -> None:
        if name in self._own or hasattr(type(self), name):
            object.__delattr__(self, name)
        else:
            delattr(self._pipe, name)

    def __dir__(self) -> Iterable[str]:
        return sorted({*super().__dir__(), *dir(self._pipe)})

    @property
    def config(self) -> Any:
        """The wrapped pipeline's config.

        Raises:
            TypeError: when one of Diffusers' `from_pipe` asks for it, as the first thing that they do: the pipeline
                that they make would not be steered, or they would fail on the class of this one.
        """
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        if caller is not None and caller.f_code.co_name == "from_pipe":
            name = type(self).__name__
            raise TypeError(
                f"from_pipe takes a Diffusers pipeline, and a {name} is none: pass pipe.pipe, which it wraps, and "
                f"wrap the result again to steer it: {name}(SomePipeline.from_pipe(pipe.pipe), reward=pipe.reward)."
            )
        return self._pipe.config

    def _can_write_through(self, name: str) -> bool:
        if name in (*config_fields(), *batch_size_fields()) or not hasattr(self._pipe, name):
            return False
        kind = getattr(type(self._pipe), name, None)
        return not isinstance(kind, property) or kind.fset is not None

    def _remedy(self, name: str) -> str:
        """What to write in place of an attribute that is not there, or that cannot be written."""
        for holder, names in (("steering", config_fields()), ("batch_sizes", batch_size_fields())):
            if name in names:
                return (
                    f"{name} is a setting and no attribute: pipe.{holder} = dataclasses.replace(pipe.{holder}, "
                    f"{name}=...) sets it for all calls, pipe(prompt, {name}=...) for one; pipe.{holder}.{name} reads "
                    "it."
                )
        if name in {*self._call_arguments(type(self)), *self._call_arguments(type(self._pipe))}:
            return f"{name} is an argument of the call: pipe(prompt, {name}=...)."
        known = [*config_fields(), *batch_size_fields(), *(n for n in dir(self) if not n.startswith("_"))]
        wrapped = type(self._pipe).__name__
        return (
            f"Neither {type(self).__name__} nor {wrapped} has an attribute {name!r}.{did_you_mean(name, known)} "
            f"To give the {wrapped} a new one, write pipe.pipe.{name} = ..."
        )

    @staticmethod
    def _call_arguments(kind: type) -> Iterable[str]:
        call = getattr(kind, "__call__", None)  # noqa: B004 (the method itself, for its signature)
        return () if call is None else inspect.signature(call).parameters
