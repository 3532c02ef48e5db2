"""What has a row for each particle outside the sample: it follows the ancestors, or the run is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

Take: TypeAlias = Callable[[Tensor], Tensor]
"""Rows `(B, ...)` to the rows of the ancestors `(B', ...)`; B' is smaller or larger where the population is."""


class RowState(Protocol):
    """Something that keeps a row for each particle from one step to the next.

    `steer` gathers the scheduler's own history (`SchedulerHistory`) and whatever it is given beside it. One that cannot
    be gathered raises when it is made, which is before the first step.
    """

    def gather(self, take: Take, num_rows: int) -> None:
        """Let every row be that of its ancestor, in place.

        Args:
            take: rows of the particles `(num_rows, ...)` to those of the ancestors.
            num_rows: particles in the batch before this resampling.
        """


class SchedulerHistory:
    """The tensors that a scheduler keeps between steps: `model_outputs`, `ets`, `sample`, `last_sample`, ...

    Args:
        scheduler: changed in place.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> scheduler = SimpleNamespace(model_outputs=[None, torch.tensor([[1.0], [2.0]])], sigmas=torch.zeros(2))
        >>> SchedulerHistory(scheduler).gather(lambda rows: rows[[1, 1]], 2)
        >>> scheduler.model_outputs[1].flatten()
        tensor([2., 2.])
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def gather(self, take: Take, num_rows: int) -> None:
        """Gather the tensors of at least two sides with a row for each particle; tables of levels have one side."""

        def gathered(tensor: Tensor) -> Tensor:
            return take(tensor) if tensor.ndim > 1 and len(tensor) == num_rows else tensor

        for name, value in list(vars(self._scheduler).items()):
            replacement = map_tensors(gathered, value)
            if replacement is not value:
                setattr(self._scheduler, name, replacement)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors inside lists, tuples and dictionaries; the same object where nothing changed.

    Example:
        >>> import torch
        >>> map_tensors(lambda tensor: tensor + 1, {"a": [torch.zeros(1), "kept"]})
        {'a': [tensor([1.]), 'kept']}
    """
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        mapped = {key: map_tensors(function, item) for key, item in value.items()}
        return mapped if any(mapped[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        items = [map_tensors(function, item) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    return value


class GeneratorRows:
    """Generators of a loop that has one for each particle, as the population changes.

    Where particles are copied, a generator belongs to a slot of its prompt, so that copies draw different noise; slots
    beyond those that the loop began with get generators derived from theirs. Where none is copied, a generator goes
    with its particle, which then ends as it would have ended alone.

    Args:
        num_groups: G.
        num_particles: K at the beginning, in this process.
        copies: whether particles are copied.

    Example:
        >>> rows = GeneratorRows(1, 3, copies=False)
        >>> rows.gather(torch.tensor([2, 0]), 2)
        >>> rows.of(["a", "b", "c"])
        ['c', 'a']
    """

    def __init__(self, num_groups: int, num_particles: int, *, copies: bool) -> None:
        self._num_groups, self._first, self._copies = num_groups, num_particles, copies
        self._num_now = num_particles
        self._rows = torch.arange(num_groups * num_particles)
        self._derived: dict[int, Generator] = {}

    def gather(self, ancestors: Tensor, num_particles: int) -> None:
        """Follow the ancestors `(B',)`, after which a prompt has so many particles."""
        self._num_now = num_particles
        if not self._copies:
            self._rows = self._rows[ancestors]

    def of(self, generators: Any) -> Any:
        """Those of the particles now; whatever is no list with one for each first particle stays as it is."""
        if not isinstance(generators, list | tuple) or len(generators) != self._num_groups * self._first:
            return generators
        if not self._copies:
            return [generators[row] for row in self._rows.tolist()]
        slots = [(group, slot) for group in range(self._num_groups) for slot in range(self._num_now)]
        return [self._of_slot(generators, group, slot) for group, slot in slots]

    def _of_slot(self, generators: Sequence[Generator], group: int, slot: int) -> Generator:
        if slot < self._first:
            return generators[group * self._first + slot]
        place = group * 2**20 + slot  # one number for both; no prompt has a million particles
        if place not in self._derived:
            parent = generators[group * self._first + slot % self._first]
            # by its state and not its seed: the next call with the same generators should draw other noise
            digest = hashlib.sha256(parent.get_state().numpy().tobytes() + slot.to_bytes(8, "little")).digest()
            seed = int.from_bytes(digest[:8], "little") >> 1
            self._derived[place] = Generator(parent.device).manual_seed(seed)
        return self._derived[place]
