"""From what a person types to a pipeline on a device."""

from __future__ import annotations

from typing import Any

from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.pipelines.acceleration import speed_up
from fk_reward.pipelines.batching import BatchSizes
from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline
from fk_reward.search import SearchConfig

DEFAULT_STEPS = 50
"""Scheduler steps where neither the command line nor a solver says how many."""
SHAPES_GUIDANCE = 3.0
"""Guidance scale for which the embedded model was tuned; other models keep the default of their pipeline."""


def load_pipeline(  # noqa: PLR0913 (one parameter for each choice)
    model: str,
    *,
    reward: str,
    search: SearchConfig,
    device: str,
    dtype: str,
    batch_sizes: BatchSizes | None = None,
    reward_device: str | None = None,
) -> FKSteeringPipeline:
    """Load model and reward onto a device.

    Args:
        model: as `FKSteeringPipeline.from_pretrained` takes it.
        reward: name of a registered reward.
        search: who goes on.
        device: one of `DEVICES`.
        dtype: one of `DTYPES`.
        batch_sizes: how much is run at once; None for everything.
        reward_device: of the reward alone; None for `device`.

    Raises:
        ValueError: an unknown device, type or reward.
        OSError: a model that cannot be found or fetched.
    """
    place = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, place)
    pipe = FKSteeringPipeline.from_pretrained(
        model,
        reward=reward,
        search=search,
        batch_sizes=batch_sizes,
        reward_device=reward_device,
        torch_dtype=torch_dtype,
    )
    return pipe.to(place)


def accelerate(pipe: FKSteeringPipeline, *, compiled: bool, channels_last: bool) -> None:
    """Compile the blocks of model and reward, lay convolutions out with channels last, where that is asked for.

    Raises:
        ValueError: what cannot be compiled, or a compiler that does not work here.
    """
    if not compiled and not channels_last:
        return
    try:
        speed_up(pipe, compile=compiled or None, channels_last=channels_last or None)
    except RuntimeError as error:
        raise ValueError(f"--compile: {error}") from error


def default_guidance(model: str, guidance_scale: float | None) -> dict[str, float]:
    """Keyword argument for the pipeline's call: what was typed, else what suits the embedded model, else nothing.

    Example:
        >>> default_guidance("shapes-sd", None), default_guidance("sdxl", None), default_guidance("sdxl", 5.0)
        ({'guidance_scale': 3.0}, {}, {'guidance_scale': 5.0})
    """
    if guidance_scale is None and model == "shapes-sd":
        guidance_scale = SHAPES_GUIDANCE
    return {} if guidance_scale is None else {"guidance_scale": guidance_scale}


def call_arguments(
    pipe: FKSteeringPipeline, model: str, *, steps: int | None, guidance_scale: float | None
) -> dict[str, Any]:
    """Keyword arguments for the pipeline's call: what was typed, else what the solver says, else the defaults here.

    Args:
        pipe: the pipeline, with its solver.
        model: its name, as typed.
        steps: as typed, or None.
        guidance_scale: as typed, or None.
    """
    of_solver = {} if pipe.solver is None else pipe.solver.arguments(pipe)
    of_solver.pop("eta", None)  # the pipeline knows where it goes
    typed = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    defaults = {"num_inference_steps": DEFAULT_STEPS, **default_guidance(model, None)}
    return defaults | of_solver | {name: value for name, value in typed.items() if value is not None}
