"""What a Diffusers pipeline keeps for each particle from one step to the next, beside latents and scheduler.

Feature caches and guiders' momentum are reached through the objects that hold them; the noise of a known region, which
is a local variable of the pipeline, through the calls in which it is used. Conditions are in `conditions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.hooks.hooks import HookRegistry, ModelHook, StateManager
from torch import Tensor, nn

from fk_reward.pipelines.hooks import find_denoisers, is_wrapper, wrap_forward, wrap_method
from fk_reward.sampling.row_state import RowState, Take, map_tensors

_CACHE_STATES = (
    *("FBCSharedBlockState", "PyramidAttentionBroadcastState", "FasterCacheDenoiserState", "FasterCacheBlockState"),
    *("TaylorSeerState", "MagCacheState", "TextKVCacheState", "TextKVCacheBlockState", "ScheduledCacheState"),
)
"""States of hooks of Diffusers and of `caching`, whose tensors have a row for each particle, in one block or in those
of guidance."""

_WEIGHTS = ("_parameters", "_buffers", "_modules")

_REFUSED = {
    "IFInpaintingPipeline": "keeps the known region of every particle in a variable of its own",
    "IFInpaintingSuperResolutionPipeline": "keeps the known region of every particle in a variable of its own",
    "IFImg2ImgSuperResolutionPipeline": "adds noise to the small image of every particle and keeps it to itself",
    "IFSuperResolutionPipeline": "adds noise to the small image of every particle and keeps it to itself",
}


@contextmanager
def kept_rows(pipe: Any, *, resizes: bool = False) -> Iterator[list[RowState]]:
    """Find what the pipeline keeps for each particle, for one call whose particles are copied.

    Caches are empty at the beginning: what an interrupted call has left would be another batch's. After an error they
    are emptied again, as the pipeline itself does at its end.

    Args:
        pipe: the wrapped pipeline.
        resizes: whether the number of particles changes in the course of the call.

    Yields:
        What `steer` is to gather.

    Raises:
        ValueError: for what has state that cannot be gathered, by its name; here or when the denoiser is first called.
    """
    reason = next((_REFUSED[cls.__name__] for cls in type(pipe).__mro__ if cls.__name__ in _REFUSED), None)
    if reason is not None:
        raise ValueError(
            f"{type(pipe).__name__} {reason}, which cannot follow the particles: take search='best-of-n' "
            "(num_resamples=0)."
        )
    if resizes and "mask_image" in inspect.signature(pipe.__call__).parameters:
        raise ValueError(
            f"{type(pipe).__name__} keeps mask and image for every particle that it began with: leave "
            "final_particles out, and take no other search that changes the number of particles."
        )
    caches, guiders = CacheStates(pipe, resizes=resizes), GuiderStates(pipe)
    noise = KnownRegionNoise()
    caches.reset()
    with ExitStack() as stack:
        for name in ("add_noise", "scale_noise"):
            if hasattr(pipe.scheduler, name):
                stack.enter_context(wrap_method(pipe.scheduler, name, noise.call))
        for module in find_denoisers(pipe):
            around = _first_call_checked(module, noise.begin)
            stack.enter_context(wrap_forward(module, around))
        try:
            yield [caches, guiders, noise]
        except BaseException:
            caches.reset()
            raise


class CacheStates:
    """Feature caches of Diffusers, by `enable_cache` or `apply_*_cache`: states of the hooks of a pipeline's models.

    Args:
        pipe: the wrapped pipeline.
        resizes: whether the number of particles changes in the course of the call.

    Raises:
        ValueError: for a hook with state that is not known here.
    """

    def __init__(self, pipe: Any, *, resizes: bool) -> None:
        modules = [value for value in vars(pipe).values() if isinstance(value, nn.Module)]
        self._registries = [registry for module in modules for registry in _registries(module)]
        self._hooks = _stateful(self._registries)
        self._resizes = resizes
        for hook in self._hooks:
            kinds = _state_types(hook)
            unknown = [kind.__name__ for kind in kinds if not _is_known(kind)]
            if unknown or not kinds:
                raise ValueError(
                    f"{type(hook).__name__} keeps state from one step to the next "
                    f"({', '.join(unknown) or 'of an unknown kind'}) that cannot follow the copies of a particle: "
                    "disable this cache, or take search='best-of-n' (num_resamples=0)."
                )
            if resizes and any(kind.__name__ == "TextKVCacheBlockState" for kind in kinds):
                raise ValueError(
                    "TextKVCache knows a prompt by the address of its embeddings, which change when fewer particles "
                    "are left: disable this cache, or leave final_particles out, and take no other search that changes "
                    "the number of particles."
                )

    def reset(self) -> None:
        """Empty the caches."""
        for registry in self._registries:
            registry.reset_stateful_hooks(recurse=False)

    def gather(self, take: Take, num_rows: int) -> None:
        """Gather the tensors of all states, block by block where guidance puts the particles several times."""
        states = {id(state): state for hook in self._hooks for state in _states(hook)}  # blocks share some
        for state in states.values():
            self._gather_state(state, take, num_rows)

    def _gather_state(self, state: Any, take: Take, num_rows: int) -> None:
        # FasterCache's deltas put the frames of a particle side by side, where guidance puts complete batches
        inner = type(state).__name__ == "FasterCacheDenoiserState"

        def gathered(tensor: Tensor) -> Tensor:
            if tensor.ndim == 0:
                return tensor  # a number that all particles share
            if len(tensor) % num_rows:
                raise ValueError(
                    f"{type(state).__name__} holds a tensor of shape {tuple(tensor.shape)}, whose rows are not those "
                    f"of {num_rows} particles: disable this cache, or take search='best-of-n' (num_resamples=0)."
                )
            return _by_particle(tensor, take, num_rows) if inner else _by_block(tensor, take, num_rows)

        vars(state).update({name: map_tensors(gathered, value) for name, value in vars(state).items()})
        if self._resizes:
            _scale_sizes(state, len(take(torch.empty(num_rows, 0))) / num_rows)


class GuiderStates:
    """Momentum of the guiders that are components of a pipeline, as in HunyuanImage.

    Args:
        pipe: the wrapped pipeline.

    Raises:
        ValueError: for a guider that is not one of Diffusers'.
    """

    def __init__(self, pipe: Any) -> None:
        self._guiders = [value for value in vars(pipe).values() if isinstance(value, BaseGuidance)]
        for guider in self._guiders:
            if not type(guider).__module__.startswith("diffusers."):
                raise ValueError(
                    f"{type(guider).__name__} is not a guider of Diffusers, and what it keeps from one step to the "
                    "next is not known: use one of theirs, or take search='best-of-n' (num_resamples=0)."
                )

    def gather(self, take: Take, num_rows: int) -> None:
        """Gather the running averages, and any other tensor with a row for each particle."""

        def gathered(tensor: Tensor) -> Tensor:
            return take(tensor) if tensor.ndim > 1 and len(tensor) == num_rows else tensor

        for guider in self._guiders:
            for owner in (guider, getattr(guider, "momentum_buffer", None)):
                if owner is not None:
                    vars(owner).update({name: map_tensors(gathered, value) for name, value in vars(owner).items()})


class KnownRegionNoise:
    """The noise with which inpainting pipelines put the known region back after every step.

    It is drawn once, a row for each particle, and belongs to the particle: without it a copy would go on with the known
    region of its slot. Pipelines hand it to `scheduler.add_noise` (or `scale_noise`) at every step.
    """

    def __init__(self) -> None:
        self._takes: list[tuple[Take, int]] = []
        self._in_loop = False
        self._source: Tensor | None = None
        self._rows: Tensor | None = None
        self._num_taken = 0

    def begin(self) -> None:
        """The denoiser has been called: noise that is added from now on belongs to a known region."""
        self._in_loop = True

    def gather(self, take: Take, num_rows: int) -> None:
        """Remember it for the next time that the noise is used."""
        self._takes.append((take, num_rows))

    def call(self, add_noise: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call `add_noise` with the gathered noise."""
        bound = inspect.signature(add_noise).bind(*args, **kwargs)
        noise = bound.arguments.get("noise")
        if self._in_loop and isinstance(noise, Tensor):
            bound.arguments["noise"] = self._gathered(noise)
        return add_noise(*bound.args, **bound.kwargs)

    def _gathered(self, noise: Tensor) -> Tensor:
        if self._source is None:
            self._source = self._rows = noise
        if noise is not self._source or self._rows is None:
            return noise  # drawn afresh at this step: it belongs to no particle yet
        for take, num_rows in self._takes[self._num_taken :]:
            self._rows = take(self._rows) if len(self._rows) == num_rows else self._rows
        self._num_taken = len(self._takes)
        return self._rows


def _first_call_checked(module: nn.Module, on_call: Callable[[], None]) -> Callable[..., Any]:
    """Around a denoiser's call: report it, and look after the first one for tensors that were left in the module."""
    is_first = True

    def call_and_look(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        on_call()
        if not is_first:
            return call(*args, **kwargs)
        before, is_first = _foreign_tensors(module), False
        output = call(*args, **kwargs)
        _check_foreign(before, _foreign_tensors(module))
        return output

    return call_and_look


def stateful_hooks(module: nn.Module) -> list[ModelHook]:
    """Hooks of Diffusers (`enable_cache`, `apply_*_cache`) that keep something from one call to the next.

    Example:
        >>> stateful_hooks(nn.Linear(1, 1))
        []
    """
    return _stateful(_registries(module))


def _stateful(registries: Iterable[HookRegistry]) -> list[ModelHook]:
    hooks = [hook for registry in registries for hook in registry.hooks.values()]
    return [hook for hook in hooks if hook._is_stateful or _managers(hook)]


def _registries(module: nn.Module) -> list[HookRegistry]:
    found = (vars(part).get("_diffusers_hook") for part in module.modules())
    return [registry for registry in found if registry is not None]


def _managers(hook: ModelHook) -> list[StateManager]:
    return [value for value in vars(hook).values() if isinstance(value, StateManager)]


def _state_types(hook: ModelHook) -> list[type]:
    """Classes of all that a hook keeps, known before there is any of it."""
    alone = [value for name, value in vars(hook).items() if name == "state" or name.endswith("_state")]
    return [*(manager._state_cls for manager in _managers(hook)), *map(type, alone)]


def _states(hook: ModelHook) -> list[Any]:
    kept = [state for manager in _managers(hook) for state in manager._state_cache.values()]
    return [*kept, hook.state] if hasattr(hook, "state") else kept


def _is_known(kind: type) -> bool:
    return kind.__name__ in _CACHE_STATES and kind.__module__.startswith(("diffusers.hooks.", "fk_reward.pipelines."))


def _by_block(tensor: Tensor, take: Take, num_rows: int) -> Tensor:
    """Gather `(num_blocks * num_rows, ...)`: complete batches one after the other."""
    if len(tensor) == num_rows:
        return take(tensor)
    return torch.cat([take(block) for block in tensor.split(num_rows)])


def _by_particle(tensor: Tensor, take: Take, num_rows: int) -> Tensor:
    """Gather `(num_rows * n, ...)`: n rows of each particle side by side."""
    return take(tensor.unflatten(0, (num_rows, -1))).flatten(0, 1)


def _scale_sizes(state: Any, factor: float) -> None:
    """Sizes of batches that some caches remember beside their tensors."""
    if getattr(state, "batch_size", None):
        state.batch_size = round(state.batch_size * factor)
    if getattr(state, "inactive_shapes", None):
        state.inactive_shapes = tuple((round(shape[0] * factor), *shape[1:]) for shape in state.inactive_shapes)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in an argument, however deep."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _foreign_tensors(module: nn.Module) -> dict[str, list[Tensor]]:
    """Tensors that attention processors and hooks of others than Diffusers hold, weights excepted, by class."""
    holders: list[Any] = []
    for part in module.modules():  # one walk: there are hundreds
        own = vars(part)
        registry = own.get("_diffusers_hook")
        processor = own.get("processor") or own["_modules"].get("processor")  # some are modules themselves
        hooks = () if registry is None else registry.hooks.values()
        holders += [processor, *(hook for hook in hooks if not is_wrapper(hook))]
    found: dict[str, list[Tensor]] = {}
    for holder in holders:
        if holder is not None and not type(holder).__module__.startswith(("diffusers.", "builtins", "torch.")):
            kept = {name: value for name, value in vars(holder).items() if name not in _WEIGHTS}
            found.setdefault(type(holder).__name__, []).extend(_tensors(kept))
    return found


def _check_foreign(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> None:
    for name, tensors in after.items():
        if any(all(tensor is not old for old in before.get(name, ())) for tensor in tensors):
            raise ValueError(
                f"{name} keeps tensors from one call of the denoiser to the next, which cannot follow the copies of a "
                "particle: use an attention processor or a hook without state, or take search='best-of-n' "
                "(num_resamples=0)."
            )
