"""What a call ran with, for its trace: the pipeline, the scheduler and its settings, the arguments, the versions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Generator

from fk_reward.stochasticity import takes_argument
from fk_reward.trace import Provenance
from fk_reward.version import __version__

_LIBRARIES = ("diffusers", "transformers", "torch")


def describe_call(
    pipe: Any, arguments: Mapping[str, Any], *, step_defaults: Mapping[str, Any], replaced_scheduler: str | None = None
) -> Provenance:
    """What runs when a pipeline is called.

    Args:
        pipe: the wrapped pipeline.
        arguments: of its call.
        step_defaults: arguments for `scheduler.step` that the pipeline does not pass.
        replaced_scheduler: class of the scheduler in whose place the pipeline's runs.
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
        seeds=_seeds(arguments.get("generator")),
        versions={"fk_reward": __version__, **{name: version(name) for name in _LIBRARIES}},
    )


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a list or dictionary of them; tensors and functions are not.

    Example:
        >>> is_plain([1, "a", None]), is_plain(is_plain)
        (True, False)
    """
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def plain(value: Any) -> Any:
    """The same value as JSON gives it back: lists for tuples, texts for infinite numbers.

    Example:
        >>> plain({"sizes": (1, 2), "lambda_min_clipped": -math.inf})
        {'sizes': [1, 2], 'lambda_min_clipped': '-inf'}
    """
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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


def _seeds(generator: Generator | Sequence[Generator] | None) -> tuple[int, ...]:
    if generator is None:
        return ()
    return tuple(one.initial_seed() for one in ([generator] if isinstance(generator, Generator) else generator))
