"""What a batch reads besides pixels, kept: a sampler asks for the same prompts and sizes at every scoring step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

ValueT = TypeVar("ValueT")


class KeptBatches:
    """Makes the tensors of a batch once; those that were not asked for longest are forgotten.

    Args:
        size: number of batches that are kept; of token ids, some hundred kilobytes each at most.

    Example:
        >>> batches = KeptBatches(size=1)
        >>> made = [batches.get(prompt, lambda: torch.rand(2)) for prompt in ("a", "a", "b", "a")]
        >>> [torch.equal(made[0], again) for again in made[1:]]
        [True, False, False]
    """

    def __init__(self, *, size: int = 32) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        """Return the tensors of a key.

        Args:
            key: all that they depend on.
            make: makes them, on the CPU; nobody writes to them.
        """
        if key not in self._kept:
            # In inference mode they would serve no later call that needs gradients; on the meta device have no numbers.
            with torch.inference_mode(False), torch.device("cpu"):
                self._kept[key] = make()
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]  # type: ignore[return-value]  # what `make` made for this key

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
