"""Cached denoisers: parts of the network return what they returned at an earlier step, as a schedule says.

ECAD (Aggarwal, Shrivastava & Gwilliam 2025, arXiv 2506.15682) caches the outputs of attention and feed-forward layers
before they are gated and added to the residual stream, which stays that of the present step. Here the same is done by
hooks of Diffusers around these layers, so that no block is written anew, and for the convolutions of UNets as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fk_reward.pipelines.cache_schedule import SINGLE, CacheSchedule, Component
from fk_reward.pipelines.hooks import WrapForward, hooked, main_denoiser
from fk_reward.pipelines.pipeline_state import stateful_hooks
from fk_reward.pipelines.wrapped_pipeline import PipelineProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "BasicTransformerBlock": {"attn1": ("attn1",), "attn2": ("attn2",), "ff": ("ff",)},
    "FluxTransformerBlock": {"full_attn": ("attn",), "full_ff": ("ff",), "full_ff_context": ("ff_context",)},
    "FluxSingleTransformerBlock": {
        "single_attn": ("attn",),
        "single_proj_mlp": ("proj_mlp",),
        "single_proj_out": ("proj_out",),
    },
    "JointTransformerBlock": {"attn": ("attn",), "attn2": ("attn2",), "ff": ("ff",), "ff_context": ("ff_context",)},
    # only the second convolution's output is added to the residual stream: what the first returns does not matter then
    "ResnetBlock2D": {"resnet": ("conv2", "conv1")},
}
"""Class of a block -> its components -> their layers, the one whose output is kept first. UNets (SD, SDXL) and PixArt
have the first, Flux the next two, SD3 the fourth, UNets the last. Names of PixArt and Flux are those of ECAD."""

_ATTRIBUTE = "_fk_reward_cache"
_NO_CACHE = "or remove_cache_schedule(pipe)"


def cache_components(denoiser: nn.Module) -> dict[Component, tuple[nn.Module, ...]]:
    """Find what can be cached in a denoiser.

    Blocks of transformers bear their numbers (`"0"`, and `"single_0"` for those of Flux with one stream), blocks of
    UNets the names of their modules.

    Args:
        denoiser: a UNet or a transformer of Diffusers.

    Returns:
        Block and component, in the model's order -> the layers that are skipped, the one whose output is kept first.

    Raises:
        ValueError: for a network without a block of `BLOCKS`.

    Example:
        >>> from diffusers import PixArtTransformer2DModel
        >>> options = {"num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 8}
        >>> denoiser = PixArtTransformer2DModel(**options, num_layers=2, caption_channels=8, sample_size=4)
        >>> list(cache_components(denoiser))[:4]
        [('0', 'attn1'), ('0', 'attn2'), ('0', 'ff'), ('1', 'attn1')]
    """
    found: dict[Component, tuple[nn.Module, ...]] = {}
    for path, block in denoiser.named_modules():
        for component, names in BLOCKS.get(type(block).__name__, {}).items():
            layers = tuple(layer for name in names if (layer := getattr(block, name, None)) is not None)
            if layers:
                found[_block_name(path), component] = layers
    if not found:
        raise ValueError(
            f"{type(denoiser).__name__} has no block of a kind whose layers can be cached: {', '.join(BLOCKS)}."
        )
    return found


def _block_name(path: str) -> str:
    if path.startswith("transformer_blocks."):
        return path.removeprefix("transformer_blocks.")
    if path.startswith("single_transformer_blocks."):
        return SINGLE + path.removeprefix("single_transformer_blocks.")
    return path


def apply_cache_schedule(pipe: Any, schedule: CacheSchedule) -> None:
    """Let a pipeline's denoiser run by a schedule, until `remove_cache_schedule`; a schedule before it is replaced.

    A schedule that is True everywhere leaves the images what they are, bit for bit. When particles are resampled, their
    caches go with them. Calls need as many steps as the schedule has, and a scheduler that visits each timestep once.
    Not together with micro-batches (`particle_batch_size`), a look-ahead, `speed_up(compile=True)` and other caches.

    Args:
        pipe: an `FKSteeringPipeline`, or a pipeline of Diffusers; its denoiser is changed in place.
        schedule: for this model's components.

    Raises:
        ValueError: for a pipeline without a denoiser, a schedule of another model, and a denoiser that has another
            cache, is compiled, or cuts its feed-forward layers into chunks.

    Example:
        >>> from fk_reward import FKSteeringPipeline
        >>> pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-clipscore")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> components = cache_components(pipe.unet)
        >>> apply_cache_schedule(pipe, CacheSchedule.every(components, num_steps=4, interval=2))
        >>> out = pipe("a photo of a red circle", num_particles=2, num_inference_steps=4)
        >>> remove_cache_schedule(pipe)
    """
    inner, denoiser = _pipe_and_denoiser(pipe)
    remove_cache_schedule(pipe)
    layers = cache_components(denoiser)
    _check_components(schedule, layers, denoiser)
    _check_denoiser(denoiser)
    clock = _Clock(inner, schedule)
    with ExitStack() as stack:
        stack.enter_context(hooked(denoiser, WrapForward(clock.call_denoiser)))
        for column, component in enumerate(schedule.components):
            for place, layer in enumerate(layers[component]):
                hook = ScheduledCacheHook(clock, column, keeps=place == 0)
                clock.states.append(hook.state)
                stack.enter_context(hooked(layer, hook))
        setattr(denoiser, _ATTRIBUTE, _Applied(schedule, stack.pop_all()))


def remove_cache_schedule(pipe: Any) -> None:
    """Let the denoiser compute everything again; nothing happens where no schedule is applied."""
    _, denoiser = _pipe_and_denoiser(pipe)
    applied = vars(denoiser).pop(_ATTRIBUTE, None)
    if applied is not None:
        applied.hooks.close()


def applied_cache_schedule(pipe: Any) -> CacheSchedule | None:
    """The schedule by which the denoiser runs; None without one."""
    applied = vars(_pipe_and_denoiser(pipe)[1]).get(_ATTRIBUTE)
    return None if applied is None else applied.schedule


@contextmanager
def cache_schedule(pipe: Any, schedule: CacheSchedule | None) -> Iterator[None]:
    """Run by a schedule inside the block; None computes everything. Afterwards the schedule is as it was before."""
    before = applied_cache_schedule(pipe)
    _exchange(pipe, schedule)
    try:
        yield
    finally:
        _exchange(pipe, before)


def _exchange(pipe: Any, schedule: CacheSchedule | None) -> None:
    if schedule is None:
        remove_cache_schedule(pipe)
    else:
        apply_cache_schedule(pipe, schedule)


@dataclass
class _Applied:
    schedule: CacheSchedule
    hooks: ExitStack


@dataclass
class ScheduledCacheState:
    """What a layer returned last, for each call of the denoiser within a step (guidance may make two).

    Attributes:
        outputs: number of the call -> output, whose tensors have a row for each row of the denoiser's batch.
        shapes: number of the call -> shape of an output that nobody reads.
    """

    outputs: dict[int, Any] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget it."""
        self.outputs, self.shapes = {}, {}


class ScheduledCacheHook(WrapForward):
    """A layer that returns what it returned last where the schedule says so.

    Args:
        clock: which step it is.
        column: of the component in the schedule.
        keeps: False for a layer whose output is not read where its component is not computed.
    """

    _is_stateful = True

    def __init__(self, clock: _Clock, column: int, *, keeps: bool) -> None:
        super().__init__(self._call)
        self.state = ScheduledCacheState()
        self._clock, self._column, self._keeps = clock, column, keeps

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget what the layer has returned."""
        self.state.reset()
        return module

    def _call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise ValueError(f"A cached denoiser cannot be compiled: leave speed_up(compile=True) out, {_NO_CACHE}.")
        return self._kept_output(forward, args, kwargs) if self._keeps else self._any_output(forward, args, kwargs)

    def _kept_output(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, outputs = self._clock.call, self.state.outputs
        output = outputs.pop(call, None)
        if output is None or self._clock.computes(self._column):
            output = forward(*args, **kwargs)
        else:
            _check_rows(output, args, kwargs)
        if not self._clock.computes(self._column, ahead=1):  # else it would only take memory
            outputs[call] = output
        return output

    def _any_output(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape = self.state.shapes.get(self._clock.call)
        if shape is None or self._clock.computes(self._column):
            output = forward(*args, **kwargs)
            self.state.shapes[self._clock.call] = output.shape
            return output
        rows = _first_tensor((*args, *kwargs.values()))
        return rows.new_zeros(()).expand(len(rows), *shape[1:])


class _Clock:
    """Which step of which run it is, seen from the denoiser's calls and the pipeline's scheduler.

    A run begins with the timesteps that the scheduler sets for it; within a step the calls are counted.
    """

    def __init__(self, pipe: Any, schedule: CacheSchedule) -> None:
        self._pipe, self._schedule = pipe, schedule
        self.states: list[ScheduledCacheState] = []
        self.call, self._step = 0, -1
        self._timesteps: tuple[Any, list[float]] = (None, [])  # the scheduler's tensor, and its numbers

    def computes(self, column: int, *, ahead: int = 0) -> bool:
        """Whether a component is computed at this step, or at one further ahead; nothing is needed after the last."""
        step = self._step + ahead
        return step >= self._schedule.num_steps or self._schedule.steps[step][column]

    def call_denoiser(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the denoiser's `forward`: look at the clock first."""
        timesteps = self._pipe.scheduler.timesteps
        if timesteps is not self._timesteps[0]:
            self._begin(timesteps)
        step = self._place(_timestep(self._pipe, forward, args, kwargs))
        self.call, self._step = (self.call + 1 if step == self._step else 0), step
        return forward(*args, **kwargs)

    def _begin(self, timesteps: Any) -> None:
        numbers = [float(number) for number in torch.as_tensor(timesteps).tolist()]
        name, expected = type(self._pipe.scheduler).__name__, self._schedule.num_steps
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                f"{name} visits a timestep several times, so that the step of a caching schedule is not known: take a "
                f"solver of one call a step, such as DDIMScheduler or DPMSolverMultistepScheduler, {_NO_CACHE}."
            )
        if len(numbers) != expected:
            raise ValueError(
                f"The caching schedule {self._schedule.name!r} is for {expected} steps, and the scheduler makes "
                f"{len(numbers)}: call with num_inference_steps={expected}, {_NO_CACHE}."
            )
        for state in self.states:
            state.reset()
        self._timesteps, self._step = (timesteps, numbers), -1

    def _place(self, timestep: float) -> int:
        numbers = self._timesteps[1]
        if timestep not in numbers:
            raise ValueError(
                f"The denoiser was called at timestep {timestep}, which is none of the scheduler's: a caching schedule "
                f"needs calls at its own timesteps; leave out what makes others, {_NO_CACHE}."
            )
        return numbers.index(timestep)


def _timestep(pipe: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """That of the step: as the pipeline remembers it, since Flux hands it on in thousandths and in half precision."""
    value = vars(pipe).get("_current_timestep")
    if value is None:
        value = inspect.signature(forward).bind_partial(*args, **kwargs).arguments["timestep"]
    return float(torch.as_tensor(value).flatten()[0])


def _first_tensor(values: Any) -> Tensor:
    """The first tensor in what a layer got or returned."""
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ValueError("A cached layer should get and return tensors.")


def _check_rows(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kept = output if isinstance(output, Tensor) else _first_tensor(output)
    rows = _first_tensor((*args, *kwargs.values()))
    if len(kept) != len(rows):
        raise ValueError(
            f"The denoiser's batch has changed from {len(kept)} to {len(rows)} rows within a run, as where guidance "
            f"ends early, and what is cached is of the old one: keep the guidance on, {_NO_CACHE}."
        )


def _pipe_and_denoiser(pipe: Any) -> tuple[Any, nn.Module]:
    inner = pipe.pipe if isinstance(pipe, PipelineProxy) else pipe
    denoiser = main_denoiser(inner)
    if denoiser is None:
        raise ValueError(f"{type(inner).__name__} has no unet and no transformer, so there is nothing to cache.")
    return inner, denoiser


def _check_components(schedule: CacheSchedule, layers: dict[Component, Any], denoiser: nn.Module) -> None:
    own, given = set(layers), set(schedule.components)
    if own == given:
        return
    examples = ", ".join(map(str, sorted(given ^ own)[:3]))
    raise ValueError(
        f"The caching schedule {schedule.name!r} has {len(given)} components and {type(denoiser).__name__} has "
        f"{len(own)}, {len(given ^ own)} of which only one of them knows ({examples}, ...): take a schedule for this "
        "model, which fk-reward cache evolve makes."
    )


def _check_denoiser(denoiser: nn.Module) -> None:
    name = type(denoiser).__name__
    if caches := [type(hook).__name__ for hook in stateful_hooks(denoiser)]:
        raise ValueError(f"{name} has another cache ({caches[0]}): call its disable_cache() first.")
    for module in denoiser.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(f"{name} is compiled, and its calls would pass by a cache: speed_up(pipe, compile=False).")
        if getattr(module, "_chunk_size", None) is not None:
            raise ValueError(
                f"{name} calls its feed-forward layers in chunks: set_chunk_feed_forward(None) of its blocks ends that."
            )
