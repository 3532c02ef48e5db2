"""The size of the batches of one stage of a call, lowered where memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from fk_reward.search.feynman_kac import AUTO

logger = logging.getLogger(__name__)
T = TypeVar("T")


class BatchLimit:
    """How much one stage takes at once: a number, everything, or what turns out to fit.

    Args:
        name: the field of `BatchSizes`.
        size: its value: None for everything at once, at least 1, or "auto".
        found: sizes at which "auto" arrived, by name: read, and written when memory runs out, so that a later call
            begins where this one ended.

    Example:
        >>> limit = BatchLimit("decode_batch_size", 3, found={})
        >>> limit.run(7, lambda size: size), limit.run(2, lambda size: size)
        (3, 2)
    """

    def __init__(self, name: str, size: int | str | None, *, found: dict[str, int]) -> None:
        self._name = name
        self._asked = size
        self._found = found

    @property
    def limits(self) -> bool:
        """Whether there is anything to do: False where everything is wanted at once."""
        return self._asked is not None

    def size(self, total: int) -> int:
        """How much of `total` is taken at once."""
        size = self._found.get(self._name) if self._asked == AUTO else self._asked
        return total if size is None else min(int(size), total)

    def run(self, total: int, run_in_batches: Callable[[int], T]) -> T:
        """Call a function with the size of its batches, at most `total`.

        With "auto" it is called again with half of that for as long as memory runs out.

        Raises:
            torch.OutOfMemoryError: with a fixed size, and with "auto" when one at a time is too much.
        """
        while True:
            size = self.size(total)
            try:
                return run_in_batches(size)
            except torch.OutOfMemoryError:
                if self._asked != AUTO or size <= 1:
                    raise
            self._halve(size)  # only here has the error let go of the tensors of the failed attempt

    def _halve(self, size: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self._found[self._name] = size // 2
        logger.warning('%s="auto": %d at once are more than memory holds, now %d.', self._name, size, size // 2)
