"""What a trace says of a call besides its numbers: what ran, and whether resampling did anything."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Generator, Tensor

from fk_reward.sampling.stochasticity import takes_argument
from fk_reward.sampling.trace import Provenance, TraceStep
from fk_reward.search.feynman_kac import FKSteeringConfig
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
        seeds=seeds_of(arguments.get("generator")),
        versions=dict(_versions()),
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Read once: each takes a millisecond, from a file of the installation."""
    return {"fk_reward": __version__, **{name: version(name) for name in _LIBRARIES}}


def resampling_effect(
    config: FKSteeringConfig, steps: Sequence[TraceStep], *, reward_scale: Tensor, stopped: Tensor
) -> str | None:
    """A sentence about prompts that should have been resampled and were not; None without such prompts.

    The rewards' spread is the mean, over these prompts and the scoring steps, of the standard deviation among the
    particles of a prompt. Log-weights that are normal with standard deviation s leave an ESS of about K exp(-s^2),
    which says what lambda would have done.

    Args:
        config: settings of the run.
        steps: of its trace, the finished images among them.
        reward_scale: `(G,)`, the lambda of each prompt.
        stopped: `(G,)` bool, prompts that `config.stop_reward` excused.

    Example:
        >>> ess, weights = torch.full((1,), 2.0).double(), torch.zeros(1, 2).double()
        >>> steps = [TraceStep(2, 9.0, torch.tensor([[0.1, 0.3]]), weights, ess, None)]
        >>> steps += [TraceStep(5, 0.0, torch.tensor([[0.2, 0.3]]), weights, ess, None, final=True)]
        >>> config = FKSteeringConfig(num_particles=2, reward_scale=1.0, ess_threshold=0.75)
        >>> print(resampling_effect(config, steps, reward_scale=torch.ones(1), stopped=torch.zeros(1).bool()))
        0 of 1 prompts were resampled: this was best of 2; reward_scale x spread = 0.1 (rewards of a prompt's ...
    """
    kept = ~(_were_resampled(steps) | stopped)
    if not config.resamples or not kept.any():
        return None
    num_prompts, num_resampled = len(kept), int((~kept & ~stopped).sum())
    sentence = f"{num_resampled} of {num_prompts} prompts were resampled"
    if num_resampled == 0:
        number = steps[-1].num_particles
        drawn = f"best of {number}" if config.selection == "best" else f"a draw by weight from {number} plain samples"
        sentence += f": this was {drawn}"
    others = "of the others, " if num_resampled else ""
    return f"{sentence}; {others}{_why_not(config, steps, kept, float(reward_scale[kept].mean()))}."


def has_been_warned_of(config: FKSteeringConfig, steps: Sequence[TraceStep]) -> bool:
    """Whether `steer` has said before the run that nothing would be resampled."""
    return len(steps) < 2 or config.ess_threshold * config.num_particles <= 1.0


def _were_resampled(steps: Sequence[TraceStep]) -> Tensor:
    """(G,) bool: prompts of which some particle was copied or dropped."""
    moved = torch.zeros(steps[-1].num_prompts, dtype=torch.bool)
    for step in steps:
        if step.ancestors is not None:
            in_place = torch.arange(step.num_left) == step.ancestors.sort(dim=1).values
            moved |= ~in_place.all(dim=1) | (step.num_left < step.num_particles)
    return moved


def _why_not(config: FKSteeringConfig, steps: Sequence[TraceStep], kept: Tensor, scale: float) -> str:
    if len(steps) < 2:
        return "no scoring step was reached"
    if config.ess_threshold * config.num_particles <= 1.0:
        return (
            f"the ESS of {config.num_particles} particles is never below {config.ess_threshold:g} of them; "
            "ess_threshold=1.0 resamples at every scoring step"
        )
    rows = [row[row.isfinite()].double() for step in steps[:-1] for row in step.rewards[kept]]
    spread = float(torch.stack([row.std(correction=0) for row in rows if len(row) > 1] or [torch.zeros(())]).mean())
    if spread == 0:
        return "the rewards of a prompt's particles did not differ at the scoring steps"
    wanted = math.sqrt(-math.log(config.ess_threshold)) / spread if config.ess_threshold < 1 else 0.0
    remedy = f"reward_scale={wanted:.2g} would be about enough, and so would" if wanted > scale else "try"
    return (
        f"reward_scale x spread = {scale * spread:.2g} (rewards of a prompt's particles have a standard deviation of "
        f"{spread:.2g} at the scoring steps, reward_scale is {scale:.3g}): {remedy} reward_scale='auto'"
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


def seeds_of(generator: Generator | Sequence[Generator] | None) -> tuple[int, ...]:
    """Initial seeds of a call's generators; empty for the global one.

    Example:
        >>> seeds_of(torch.Generator().manual_seed(3))
        (3,)
    """
    if generator is None:
        return ()
    return tuple(one.initial_seed() for one in ([generator] if isinstance(generator, Generator) else generator))
