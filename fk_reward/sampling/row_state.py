"""What has a row for each particle outside the sample: it follows the ancestors, or the run is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import Tensor

Take: TypeAlias = Callable[[Tensor], Tensor]
"""Rows `(B, ...)` to the rows of the ancestors `(B', ...)`, with B' smaller where the population shrinks."""


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
