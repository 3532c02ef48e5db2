"""The wrapped pipeline: what it has to be, and how `FKSteeringPipeline` shows its attributes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import diffusers
from diffusers import DiffusionPipeline

from fk_reward.text import did_you_mean


class PipelineProxy:
    """Reads from and writes to a wrapped pipeline what it does not have itself.

    A subclass keeps the wrapped pipeline in `_pipe`, annotates its private attributes in the body of the class, and
    makes properties of its public ones. A name that neither of the two objects has cannot be written: it would be a
    misspelt setting that is never read.

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

    _own: ClassVar[frozenset[str]] = frozenset({"_pipe"})
    _pipe: Any

    def __init_subclass__(cls) -> None:
        cls._own = cls._own | frozenset(inspect.get_annotations(cls))

    def __getattr__(self, name: str) -> Any:
        # Before __init__ has run (copy, pickle) there is nothing to read through to; and the wrapped pipeline's
        # __reduce__, __deepcopy__, ... would copy it instead of this object.
        if name in self._own or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(self._pipe, name)
        except AttributeError as error:
            if any(name in names for names in self._settings().values()):
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
            TypeError: when one of Diffusers' `from_pipe` reads it: the pipeline that it makes would not be steered.
        """
        # `from_pipe` reads the config before anything else that a pipeline and this class have in common, and its own
        # error would name neither the mistake nor the remedy
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        if caller is not None and caller.f_code.co_name == "from_pipe":
            name = type(self).__name__
            raise TypeError(
                f"from_pipe takes a Diffusers pipeline, not a {name}: pass pipe.pipe, which it wraps, and "
                f"wrap the result again to steer it: {name}(SomePipeline.from_pipe(pipe.pipe), reward=pipe.reward)."
            )
        return self._pipe.config

    def _settings(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the fields of each attribute that holds settings, which are no attributes themselves."""
        return {}

    def _can_write_through(self, name: str) -> bool:
        if any(name in names for names in self._settings().values()) or not hasattr(self._pipe, name):
            return False
        kind = getattr(type(self._pipe), name, None)
        return not isinstance(kind, property) or kind.fset is not None

    def _remedy(self, name: str) -> str:
        """What to write instead of an attribute that is not there, or that cannot be written."""
        settings = self._settings()
        for holder, names in settings.items():
            if name in names:
                return (
                    f"{name} is a setting and no attribute: pipe.{holder} = dataclasses.replace(pipe.{holder}, "
                    f"{name}=...) sets it for all calls, pipe(prompt, {name}=...) for one; pipe.{holder}.{name} reads "
                    "it."
                )
        if name in {*self._call_arguments(type(self)), *self._call_arguments(type(self._pipe))}:
            return f"{name} is an argument of the call: pipe(prompt, {name}=...)."
        known = [*itertools.chain(*settings.values()), *(n for n in dir(self) if not n.startswith("_"))]
        wrapped = type(self._pipe).__name__
        return (
            f"Neither {type(self).__name__} nor {wrapped} has an attribute {name!r}.{did_you_mean(name, known)} "
            f"To give the {wrapped} a new one, write pipe.pipe.{name} = ..."
        )

    @staticmethod
    def _call_arguments(kind: type) -> Iterable[str]:
        call = getattr(kind, "__call__", None)  # noqa: B004 (the method itself, for its signature)
        return () if call is None else inspect.signature(call).parameters


_AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
"""Attributes of pipelines that decode latents; a pipeline without any of them draws pixels."""

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


def with_dtype(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` with the floating type under the name that this Diffusers takes.

    Diffusers 0.40 renamed `torch_dtype` to `dtype`, and warns of the older word; earlier releases know no other.

    Example:
        >>> list(with_dtype({"torch_dtype": "a type", "variant": "fp16"}).values())
        ['a type', 'fp16']
    """
    old, new = "torch_dtype", "dtype"
    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    name, other = (new, old) if release >= (0, 40) else (old, new)
    return {name if key == other else key: value for key, value in arguments.items()}


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

    A combined pipeline passes its scheduler to its stages when it is built, and keeps others (of a prior) beside it.

    Args:
        pipe: the pipeline.
        scheduler: the new one.
    """
    others = {id(part) for name, part in pipe.components.items() if name != "scheduler"}
    for stage in vars(pipe).values():
        if isinstance(stage, DiffusionPipeline) and hasattr(stage, "scheduler") and id(stage.scheduler) not in others:
            stage.scheduler = scheduler
    pipe.scheduler = scheduler
