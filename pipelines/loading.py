"""From what a person types to a pipeline on a device."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fk_reward.devices import resolve_device, resolve_dtype
from fk_reward.pipelines.acceleration import speed_up
from fk_reward.pipelines.batch_sizes import BatchSizes
from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline
from fk_reward.pipelines.schedulers import Solver
from fk_reward.search import SearchConfig
from fk_reward.text import did_you_mean

DEFAULT_STEPS = 50
"""Scheduler steps where neither the command line nor a solver says how many."""
SHAPES_GUIDANCE = 3.0
"""Guidance scale for which the embedded model was tuned; other models keep the default of their pipeline."""


def load_pipeline(  # noqa: PLR0913 (one parameter for each choice)
    model: str,
    *,
    reward: str,
    search: str | SearchConfig,
    device: str,
    dtype: str,
    batch_sizes: BatchSizes | None = None,
    reward_device: str | None = None,
    scheduler: str | None = None,
    loras: Sequence[LoRA] = (),
    offload: str = "none",
) -> FKSteeringPipeline:
    """Load model and reward onto a device.

    Args:
        model: as `FKSteeringPipeline.from_pretrained` takes it.
        reward: name of a registered reward.
        search: who goes on, a name or a config.
        device: one of `DEVICES`.
        dtype: one of `DTYPES`.
        batch_sizes: how much is run at once; None for everything.
        reward_device: of the reward alone; None for `device`.
        scheduler: as `named_scheduler` takes it; None for the model's own, or its stochastic counterpart.
        loras: put on the model, in their order.
        offload: "none", or where weights wait for their turn on the CPU: "model" or "sequential".

    Raises:
        ValueError: an unknown device, type, reward or scheduler; a LoRA that does not fit; offloading to no GPU.
        OSError: a model that cannot be found or fetched.
    """
    place = resolve_device(device)
    if offload != "none" and place == "cpu":
        raise ValueError(f"--offload {offload} moves weights between the CPU and a GPU, and the device is the CPU.")
    pipe = FKSteeringPipeline.from_pretrained(
        model,
        reward=reward,
        search=search,
        batch_sizes=batch_sizes,
        reward_device=reward_device,
        torch_dtype=resolve_dtype(dtype, place),
    )
    if scheduler is not None:
        pipe.scheduler = named_scheduler(scheduler, pipe.scheduler)
    if loras:
        load_loras(pipe, loras)
    return _placed(pipe, place, offload)


def _placed(pipe: FKSteeringPipeline, place: str, offload: str) -> FKSteeringPipeline:
    """The pipeline where its models run; an offloaded one brings them there itself, but for the reward."""
    if offload == "none":
        return pipe.to(place)
    move = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
    move(device=place)
    pipe.reward.to(pipe.reward_device or place)
    return pipe


@dataclass(frozen=True)
class LoRA:
    """A LoRA as it is typed.

    Attributes:
        source: folder or hub id.
        weight_name: file in it; None for the only one.
        weight: how much of it is added.
    """

    source: str
    weight_name: str | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoRA:
        """Read a file, a folder, a hub id or a file of a hub id, with `=WEIGHT` behind it if any.

        Raises:
            ValueError: the weight is no number.

        Example:
            >>> LoRA.parse("owner/name/style.safetensors=0.5")
            LoRA(source='owner/name', weight_name='style.safetensors', weight=0.5)
        """
        source, mark, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        path = Path(source)
        if path.is_file():
            return cls(str(path.parent), path.name, float(weight))
        if not path.exists() and source.endswith(".safetensors"):
            owner, name, *inside = source.split("/")
            return cls(f"{owner}/{name}", "/".join(inside), float(weight))
        return cls(source, None, float(weight))


def load_loras(pipe: FKSteeringPipeline, loras: Sequence[LoRA]) -> None:
    """Put LoRAs on the model of a pipeline, all active with their weights.

    Raises:
        ValueError: the pipeline takes none, or the weights of one are for another model.
    """
    if not hasattr(pipe.pipe, "load_lora_weights"):
        raise ValueError(f"--lora: {type(pipe.pipe).__name__} takes no LoRA.")
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        file = {} if lora.weight_name is None else {"weight_name": lora.weight_name}
        try:
            pipe.load_lora_weights(lora.source, adapter_name=name, **file)
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # no weights, or of other shapes or modules
            raise ValueError(f"--lora {lora.source}: cannot be put on this model: {_first_line(error)}") from error
        if all(name not in adapters for adapters in pipe.get_list_adapters().values()):
            raise ValueError(f"--lora {lora.source}: holds no weights for {type(pipe.pipe).__name__}.")
    pipe.set_adapters(names, [lora.weight for lora in loras])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def named_scheduler(text: str, own: Any) -> Any:
    """A Diffusers scheduler by name, for the model of another one and at its noise levels.

    Args:
        text: name of a class of Diffusers in any case, with or without its last word, and settings behind a colon if
            any: "DDIMScheduler", "ddim", "Name:setting=value,setting=value".
        own: the model's scheduler, whose settings (betas, prediction type, ...) are kept.

    Raises:
        ValueError: no such scheduler or setting, or noise levels that are not those of the model.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> named_scheduler("DPMSolverMultistepScheduler:solver_order=3", DDIMScheduler()).config.solver_order
        3
    """
    import diffusers

    name, _, settings = text.partition(":")
    known = {
        found.removesuffix("Scheduler").lower(): found
        for found in dir(diffusers)
        if found.endswith("Scheduler") and not found.startswith("Flax")
    }
    short = name.lower().removesuffix("scheduler")
    if short not in known:
        hint = did_you_mean(short, known, show=lambda close: repr(known[close]))
        raise ValueError(f"Diffusers has no scheduler {name!r}.{hint}")
    kind = getattr(diffusers, known[short])
    config = dict(setting.split("=", 1) for setting in settings.split(",")) if settings else {}
    typed = {key: _plain_value(value) for key, value in config.items()}
    return Solver(scheduler=kind, num_inference_steps=DEFAULT_STEPS, config=typed).build(own)


def _plain_value(text: str) -> Any:
    """A number, True, False or None; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
    pipe: FKSteeringPipeline,
    model: str,
    *,
    steps: int | None,
    guidance_scale: float | None,
    size: Mapping[str, int | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """Keyword arguments for the pipeline's call: what was typed, else what the solver says, else the defaults here.

    Args:
        pipe: the pipeline, with its solver.
        model: its name, as typed.
        steps: as typed, or None.
        guidance_scale: as typed, or None.
        size: height and width as typed, or None.
    """
    given = {"num_inference_steps": steps, "guidance_scale": guidance_scale, **size}
    typed = {name: value for name, value in given.items() if value is not None}
    of_solver = {} if pipe.solver is None else pipe.solver.complete(pipe, typed)
    of_solver.pop("eta", None)  # the pipeline knows where it goes
    defaults = {"num_inference_steps": DEFAULT_STEPS, **default_guidance(model, None)}
    return defaults | of_solver | typed
