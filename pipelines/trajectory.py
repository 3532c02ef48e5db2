"""One pass of a pipeline: the start that it is given or draws, and the step that it begins with."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from fk_reward.pipelines.hooks import wrap_method
from fk_reward.pipelines.schedulers import unchanged
from fk_reward.sampling.normal_draws import NormalDraws
from fk_reward.sampling.x0_prediction import alpha_sigma, scheduler_name

_ONE_STEP = ("DDIMScheduler", "DDPMScheduler")
"""Schedulers whose step depends on its timestep alone, and that have no index to begin at."""


class Randomness:
    """The generators that a call draws from, which every pass begins with in the same state.

    Args:
        generator: of the call: one, a list, or None for PyTorch's global ones.
        device: where the pipeline draws where there is none.
    """

    def __init__(self, generator: Generator | Sequence[Generator] | None, device: torch.device) -> None:
        self._sources: list[tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = []
        if generator is None:
            self._sources.append((torch.get_rng_state, torch.set_rng_state))
            if device.type != "cpu":
                module = torch.get_device_module(device)
                self._sources.append((module.get_rng_state, module.set_rng_state))
        else:
            each = [generator] if isinstance(generator, Generator) else generator
            self._sources += [(one.get_state, one.set_state) for one in each]
        self._states = self.states()

    def states(self) -> list[Tensor]:
        """Their states now."""
        return [read().clone() for read, _ in self._sources]

    def reset(self, states: Sequence[Tensor] | None = None) -> None:
        """Put them into these states; into those of the beginning when missing."""
        for (_, write), state in zip(self._sources, self._states if states is None else states, strict=True):
            write(state)


class Trajectory:
    """Watches one pass: gives the pipeline its start, or finds the one that it draws.

    Args:
        pipe: the wrapped pipeline.
        start: what it begins from; None for what the pipeline draws.
        from_step: the first step that is made.
        generator: of the pass.
    """

    def __init__(
        self, pipe: Any, start: Tensor | None, from_step: int, generator: Generator | Sequence[Generator] | None
    ) -> None:
        self._pipe = pipe
        self._given = start
        self._from_step = from_step
        self._randomness = Randomness(generator, pipe._execution_device)
        self._timesteps: Tensor | None = None  # all of them, while the pipeline reads those that are left
        self.scheduler: Any = None  # as the loop finds it, with all of its timesteps; None before
        self._start: Tensor | None = start

    @property
    def start(self) -> Tensor:
        """`(B, ...)`, the start of the pass."""
        if self._start is None:
            name = type(self._pipe).__name__
            raise ValueError(f"{name} never called its prepare_latents, so that its starts are not known.")
        return self._start

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the pipeline's call inside the block."""
        scheduler = self._pipe.scheduler
        with ExitStack() as stack:
            # also here: `SteeredRun.complete` keeps the scheduler as it is inside the block
            stack.enter_context(unchanged(scheduler))
            stack.enter_context(wrap_method(self._pipe, "prepare_latents", self._prepare_latents))
            stack.enter_context(wrap_method(self._pipe, "progress_bar", self._begin))
            if self._from_step:
                stack.enter_context(wrap_method(scheduler, "set_timesteps", self._cut))
            yield

    def _prepare_latents(self, prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        signature, before = inspect.signature(prepare), self._randomness.states()
        given = signature.bind(*args, **kwargs).arguments.get("latents")
        # As a plain call first, also where its noise is not used: its steps have to find the generators where that
        # leaves them
        with NormalDraws() as draws:
            drawn = prepare(*args, **kwargs)
        after = self._randomness.states()

        def prepared(latents: Tensor) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.arguments["latents"] = latents
            self._randomness.reset(before)  # inpainting samples the latents of its image before the noise
            try:
                return prepare(*bound.args, **bound.kwargs)
            finally:
                self._randomness.reset(after)

        if self._given is None:
            self._start = given if given is not None else self._found(prepared, drawn, draws.drawn)
            return drawn
        if self._from_step:  # the samples of a later step are not scaled as noise is
            return _with_first(drawn, self._given.to(_first(drawn)))
        return prepared(self._given)

    def _found(self, prepared: Callable[[Tensor], Any], drawn: Any, draws: Sequence[Tensor]) -> Tensor:
        """The noise of which `prepare_latents` makes what it made, bit for bit."""
        joined = [torch.cat(tuple(draws))] if len({one.shape[1:] for one in draws}) == 1 else []
        for candidate in (*joined, *draws, _first(drawn)):
            # some pipelines refuse latents of another shape
            with contextlib.suppress(ValueError):
                if torch.equal(_first(prepared(candidate)), _first(drawn)):
                    return candidate.detach().clone()
        raise ValueError(
            f"A search over starts cannot find the noise that {type(self._pipe).__name__} draws in its "
            "prepare_latents: pass latents=..., one row for each particle."
        )

    def _cut(self, set_timesteps: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Leave the timesteps from `from_step` on, until the pipeline has read them."""
        result, scheduler = set_timesteps(*args, **kwargs), self._pipe.scheduler
        require_cut(scheduler, self._from_step)
        self._timesteps = scheduler.timesteps
        scheduler.timesteps = scheduler.timesteps[self._from_step :]
        return result

    def _begin(self, progress_bar: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Give the scheduler all of its timesteps back, and its place among them, just before the loop."""
        # not earlier: Flux sets the index itself after it has read the timesteps
        if self._timesteps is not None:
            self._pipe.scheduler.timesteps, self._timesteps = self._timesteps, None
            if hasattr(self._pipe.scheduler, "set_begin_index"):
                self._pipe.scheduler.set_begin_index(self._from_step)
        self.scheduler = copy.copy(self._pipe.scheduler)
        return progress_bar(*args, **kwargs)


def _first(prepared: Any) -> Tensor:
    """The latents among what `prepare_latents` returns: some pipelines add positions, or the latents of an image."""
    first: Tensor = prepared[0] if isinstance(prepared, tuple | list) else prepared
    return first


def _with_first(prepared: Any, latents: Tensor) -> Any:
    return type(prepared)((latents, *prepared[1:])) if isinstance(prepared, tuple | list) else latents


def level_of(scheduler: Any, step: int) -> tuple[float, float]:
    """Alpha and sigma of the samples before a step, `alpha * x0 + sigma * noise`.

    Args:
        scheduler: with its timesteps set.
        step: 0-based index of the step.

    Example:
        >>> from diffusers import EulerAncestralDiscreteScheduler
        >>> scheduler = EulerAncestralDiscreteScheduler()
        >>> scheduler.set_timesteps(10)
        >>> level_of(scheduler, 3) == (1.0, float(scheduler.sigmas[3])), scheduler.step_index
        (True, None)
    """
    at_step = copy.copy(scheduler)  # asking for a level sets the index of a scheduler that counts its steps
    if hasattr(at_step, "set_begin_index"):
        at_step.set_begin_index(step)
        at_step._step_index = None
    return alpha_sigma(at_step, at_step.timesteps[step])


def require_cut(scheduler: Any, from_step: int) -> None:
    """Refuse schedulers that cannot begin inside their trajectory.

    Raises:
        ValueError: for a step that the trajectory does not have, and for such schedulers.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(10)
        >>> require_cut(scheduler, 3)
    """
    name, timesteps = type(scheduler).__name__, torch.as_tensor(scheduler.timesteps)
    if from_step >= len(timesteps):
        raise ValueError(f"from_step should be below the {len(timesteps)} steps of this pass, got {from_step}.")
    begins = hasattr(scheduler, "set_begin_index") or scheduler_name(scheduler) in _ONE_STEP
    if getattr(scheduler, "order", 1) != 1 or not (timesteps[1:] < timesteps[:-1]).all() or not begins:
        raise ValueError(
            f"{name} cannot begin at from_step={from_step}: it calls the denoiser several times a step, or keeps count "
            "of its own. Use DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
