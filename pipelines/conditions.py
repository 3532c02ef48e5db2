"""Conditions of a denoiser (text embeddings, ...): shared by the particles of a prompt, or following their particle."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fk_reward.pipelines.batching import POSITIONS, BatchLayout, batch_rows
from fk_reward.pipelines.epilogue import CannotDecodeError, Epilogue
from fk_reward.pipelines.hooks import find_denoisers, wrap_forward
from fk_reward.pipelines.wrapped_pipeline import PROMPTS_TOGETHER
from fk_reward.sampling.row_state import Take, map_tensors
from fk_reward.search.base import Population

_OF_THE_SAMPLE = re.compile(
    r"(hidden_states|sample|x|z|latent.*|noisy.*|.*residual.*|.*block_samples.*|"
    r".*controlnet_hidden_states)"
)
"""Arguments that belong to the sample of this step, as a ControlNet's outputs do: the particles differ in them."""
_JOINED = "channels beside the sample"
"""Name of the condition that a pipeline joins to the sample, as the control image of `FluxControlPipeline` is."""


class Conditions:
    """The conditions of one call: compared at the first call of each denoiser, and gathered where they differ.

    A pipeline repeats what it encodes of a prompt for each of its K particles. Some repeat their masks in another order
    than their embeddings, so that the particles of one prompt get the mask of another. And some have a prior, which
    draws an embedding for each particle: a particle is then its sample and its embedding together, and where one is
    copied the other has to follow. This is a `RowState`.

    A pipeline hands its conditions over as they were at every step, so only a tensor that was there before the first
    copying is gathered. One that is made anew is either the particle's already or belongs to none, and raises.

    Args:
        pipe: the wrapped pipeline.
        num_groups: number of prompts, G.
        num_particles: of a prompt in this process at the beginning, K.
        resizes: whether the number of particles changes in the course of the call.
    """

    def __init__(self, pipe: Any, *, num_groups: int, num_particles: int, resizes: bool = False) -> None:
        self._pipe = pipe
        self._resizes = resizes
        self._num_groups = num_groups
        self._num_particles = num_particles
        self._own: dict[int, set[str]] = {}  # names of arguments that differ, by denoiser
        self._joined: dict[int, _Joined | None] = {}
        self._first: dict[tuple[int, str], list[Tensor]] = {}  # what these arguments were before anything was copied
        self._takes: list[tuple[Take, int]] = []

    @contextmanager
    def following(self) -> Iterator[Conditions]:
        """Look at the arguments of the pipeline's denoisers inside the block."""
        if self._num_groups > 1 and type(self._pipe).__name__ in PROMPTS_TOGETHER:
            raise ValueError(f"{type(self._pipe).__name__} mixes the prompts of a batch. Pass one prompt a call.")
        with ExitStack() as stack:
            for denoiser in find_denoisers(self._pipe) if self._num_particles > 1 else []:
                stack.enter_context(wrap_forward(denoiser, self._around(denoiser)))
            yield self

    def gather(self, take: Take, num_rows: int) -> None:
        """Remember it for the calls to come: the conditions are local variables of the pipeline."""
        self._takes.append((take, num_rows))

    def _around(self, denoiser: nn.Module) -> Callable[..., Any]:
        names = list(inspect.signature(type(denoiser).forward).parameters)[1:]

        def call_with_own(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            if id(denoiser) not in self._own:
                self._look(denoiser, given, batch_rows(args, kwargs))
            own, joined = self._own[id(denoiser)], self._joined[id(denoiser)]
            if not own:
                return call(*args, **kwargs)
            taken = {name: self._taken(value, id(denoiser), name) for name, value in given.items() if name in own}
            if joined is not None and _JOINED in own:
                sample, beside = joined.apart(given)
                taken[joined.name] = torch.cat([sample, self._taken(beside, id(denoiser), _JOINED)], joined.side)
            args = tuple(taken.get(name, value) for name, value in zip(names, args, strict=False))
            return call(*args, **{name: taken.get(name, value) for name, value in kwargs.items()})

        return call_with_own

    @property
    def _num_rows(self) -> int:
        return self._num_groups * self._num_particles

    def _look(self, denoiser: nn.Module, given: Mapping[str, Any], num_rows: int) -> None:
        """Find out which conditions follow their particles, at the first call of a denoiser."""
        joined = _Joined.find(given)
        if joined is not None and self._resizes:
            raise ValueError(
                f"{type(self._pipe).__name__} joins an image of each particle that it began with to the samples: leave "
                "final_particles out, and take no other search that changes the number of particles."
            )
        beside = {} if joined is None else {_JOINED: joined.apart(given)[1]}
        self._own[id(denoiser)] = self._differing({**given, **beside}, num_rows)
        self._joined[id(denoiser)] = joined

    def _differing(self, given: Mapping[str, Any], num_rows: int) -> set[str]:
        """Names of the conditions in which the particles of a prompt differ.

        Raises:
            ValueError: where there are several prompts, or particles in other processes.
        """
        if num_rows == 0 or num_rows % self._num_rows:
            return set()
        first = next((name for name, value in given.items() if isinstance(value, Tensor) and value.ndim > 1), "")
        conditions = {name: value for name, value in given.items() if name != first and not _is_of_the_sample(name)}
        found = {name for name, value in conditions.items() if self._differs(name, value, num_rows)}
        if found and self._num_groups > 1:
            raise ValueError(
                f"{type(self._pipe).__name__} gives the {self._num_particles} particles of one prompt different "
                f"{', '.join(sorted(found))}: in a batch it orders them by particle and not by prompt, or draws them "
                "for each particle, so that the prompts would influence one another. Pass one prompt a call."
            )
        return found

    def _differs(self, name: str, value: Any, num_rows: int) -> bool:
        found = False

        def look(tensor: Tensor) -> Tensor:
            nonlocal found
            if tensor.ndim and len(tensor) == num_rows and not (name in POSITIONS and tensor.ndim < 3):
                particles = tensor.reshape(-1, self._num_groups, self._num_particles, max(1, tensor[0].numel()))
                found = found or not _all_equal(particles)
            return tensor

        map_tensors(look, value)
        return found

    def _taken(self, value: Any, denoiser: int, name: str) -> Any:
        """A condition with the rows of the particles that are there by now.

        Raises:
            ValueError: for one that is not what it was before the particles were copied.
        """
        first = self._first.setdefault((denoiser, name), [])

        def followed(tensor: Tensor) -> Tensor:
            if tensor.ndim == 0 or len(tensor) % self._num_rows:
                return tensor
            if not any(torch.equal(tensor, known) for known in first):
                if self._takes:
                    raise ValueError(
                        f"{type(self._pipe).__name__} makes {name}, which differs from particle to particle, anew "
                        "after particles were copied, so that it cannot follow them: take search='best-of-n' "
                        "(num_resamples=0)."
                    )
                first.append(tensor)
            for take, num_rows in self._takes:
                tensor = torch.cat([take(block) for block in tensor.split(num_rows)])
            return tensor

        return map_tensors(followed, value)


@dataclass(frozen=True)
class _Joined:
    """Where conditions begin that are joined to the sample, in the argument of this name along this side."""

    name: str
    side: int
    start: int

    @classmethod
    def find(cls, given: Mapping[str, Any]) -> _Joined | None:
        """Compare the first argument with the sample that the next step gets; None where nothing follows behind it."""
        name, value = next(((n, v) for n, v in given.items() if isinstance(v, Tensor) and v.ndim > 1), ("", None))
        try:
            sample = Epilogue.of(inspect.currentframe()).sample()
        except CannotDecodeError:
            return None  # `RunningCall` raises where that matters
        if value is None or not isinstance(sample, Tensor) or value.ndim != sample.ndim or len(value) < len(sample):
            return None
        longer = [side for side in range(1, value.ndim) if value.shape[side] != sample.shape[side]]
        if len(longer) != 1 or value.shape[longer[0]] < sample.shape[longer[0]]:
            return None
        found = cls(name, longer[0], sample.shape[longer[0]])
        return found if torch.equal(found.apart(given)[0][: len(sample)], sample.to(value)) else None

    def apart(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The sample `(B, ...)`, and what is joined to it."""
        value = given[self.name]
        sample, beside = value.split([self.start, value.shape[self.side] - self.start], self.side)
        return sample, beside


def _is_of_the_sample(name: str) -> bool:
    return _OF_THE_SAMPLE.fullmatch(name) is not None


def _all_equal(particles: Tensor) -> bool:
    """Whether the particles `(blocks, G, K, N)` of each prompt agree, but for the rounding of an encoder's batch."""
    first = particles[:, :, :1]
    if not particles.is_floating_point():
        return bool((particles == first).all())
    # an encoder gives the rows of a batch different last bits, by their place in it
    tolerance = 1e-4 if particles.dtype in (torch.float32, torch.float64) else 1e-2
    return bool(((particles - first).abs() <= tolerance * first.abs().amax(-1, keepdim=True)).all())


@contextmanager
def fit_conditions(pipe: Any, population: Population) -> Iterator[None]:
    """Bring the conditions of each call of the denoiser to the size of its sample, inside the block.

    A pipeline prepares text embeddings, time ids and the like once, for K particles of each prompt. When there are K'
    of them, the samples have fewer rows, or more. The conditions of a prompt are the same for all of its particles, so
    that any K' of their rows will do, and some of them twice.

    Args:
        pipe: the wrapped pipeline.
        population: of the call; K' is its `num_particles`.

    Raises:
        ValueError: for a pipeline whose denoiser is not known.
    """
    denoisers = find_denoisers(pipe)
    if not denoisers:
        raise ValueError(
            f"{type(pipe).__name__} has no unet and no transformer, so that the number of particles cannot change: "
            "leave final_particles out, and take no other search that changes the number of particles."
        )
    first = population.num_particles

    def call_resized(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = population.num_particles
        if number == first:
            return call(*args, **kwargs)
        layout = BatchLayout(batch_rows(args, kwargs) // number, first)
        return call(*layout.resize(args, number), **layout.resize(kwargs, number))

    with ExitStack() as stack:
        for denoiser in denoisers:
            stack.enter_context(wrap_forward(denoiser, call_resized))
        yield
