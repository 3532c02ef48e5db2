"""What a trace says of a call besides its numbers: what ran, with which settings and seeds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Generator

from fk_reward.documents import is_plain, plain
from fk_reward.sampling.stochasticity import takes_argument
from fk_reward.sampling.trace import Provenance
from fk_reward.version import __version__

_LIBRARIES = ("diffusers", "transformers", "torch")


def describe_call(
    pipe: Any,
    arguments: Mapping[str, Any],
    *,
    step_defaults: Mapping[str, Any],
    replaced_scheduler: str | None = None,
    lookahead: int | str = 1,
) -> Provenance:
    """What runs when a pipeline is called.

    Args:
        pipe: the wrapped pipeline.
        arguments: of its call.
        step_defaults: arguments for `scheduler.step` that the pipeline does not pass.
        replaced_scheduler: class of the scheduler in whose place the pipeline's runs.
        lookahead: of the predictions that are scored.
    """
    eta = arguments.get("eta", step_defaults.get("eta")) if takes_argument(pipe.scheduler, "eta") else None
    apart = ("eta", "guidance_scale", "generator")
    return Provenance(
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=_settings(pipe.scheduler),
        replaced_scheduler=replaced_scheduler,
        eta=None if eta is None else float(eta),
        guidance_scale=_guidance_scale(pipe, arguments),
        arguments={name: plain(value) for name, value in arguments.items() if name not in apart and is_plain(value)},
        seeds=seeds_of(arguments.get("generator")),
        versions=dict(_versions()),
        lookahead=lookahead,
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Read once: each takes a millisecond, from a file of the installation."""
    return {"fk_reward": __version__, **{name: version(name) for name in _LIBRARIES}}


def _settings(scheduler: Any) -> dict[str, Any]:
    """The scheduler's config without what Diffusers writes there for itself."""
    own = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {name: plain(value) for name, value in own.items() if is_plain(value)}


def _guidance_scale(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    value = arguments.get("guidance_scale")
    if value is None and parameter is not None:
        value = parameter.default
    return float(value) if isinstance(value, int | float) else None


def seeds_of(generator: Generator | Sequence[Generator] | None) -> tuple[int, ...]:
    """Initial seeds of a call's generators; empty for the global one.

    Example:
        >>> seeds_of(Generator().manual_seed(3))
        (3,)
    """
    if generator is None:
        return ()
    return tuple(one.initial_seed() for one in ([generator] if isinstance(generator, Generator) else generator))
