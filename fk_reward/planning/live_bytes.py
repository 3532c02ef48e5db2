"""How many bytes of tensors are alive while code runs, and how many at most; with or without numbers in them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

BLOCK_BYTES = 512
"""Tensors on a GPU take whole blocks of this size: `kMinBlockSize` of PyTorch's CUDACachingAllocator."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it, for as long as they live.

    What each operation returns is counted, once for each storage, and is taken off when the storage is freed. What an
    operation needs only while it runs (the workspace of a convolution) is not seen. Tensors from before do not count,
    but those that are `held`: when they are freed or replaced, their bytes are taken off, too.

    Args:
        held: tensors from before, such as weights that may be converted under way.

    Attributes:
        live: bytes made and not yet freed, less the held ones that were freed.
        peak: most that `live` has been since the start or the last `restart`.

    Example:
        >>> import torch
        >>> with LiveBytes() as tracker:
        ...     x = torch.zeros(1024, device="meta")
        ...     y = (x + 1).sum()
        >>> tracker.live, tracker.peak  # x and the sum; at the peak x and x + 1
        (4608, 8704)
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()
        for tensor in held:
            self._meet(tensor, new=True)
        self.live = self.peak = 0

    def restart(self) -> None:
        """Forget the peak: from now on it is that of what follows."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._meet(leaf, new=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf, new=True)
        return result

    def _meet(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES if new else 0
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size
