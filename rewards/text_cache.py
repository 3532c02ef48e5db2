"""Text embeddings, kept until a weight of the text tower changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef


class TextCache:
    """Embeddings by the tokens that a text tower read.

    What was encoded in one batch is kept and found as one batch: kernels round differently in batches of other shapes,
    and so an embedding is bit for bit what encoding the batch again would give, whatever came before. The cache
    is cleared as soon as a weight is another tensor, elsewhere, of another dtype or written to (`load_state_dict`,
    `to`, an optimizer's step). Nothing is kept, and nothing found, while the tower trains: in training mode, or where a
    gradient to its weights is required.

    One way of writing goes unseen, because PyTorch does not count it: in place through `.data`, as PEFT merges its
    adapters. Call `clear` after it.

    Args:
        max_texts: how many texts are kept; those that were used longest ago go first.

    Example:
        >>> tower = nn.Embedding(9, 2).eval().requires_grad_(False)
        >>> cache, tokens = TextCache(), {"input_ids": torch.tensor([[3, 4]])}
        >>> first = cache.get(tokens, lambda tokens: tower(tokens["input_ids"])[:, 0], towers=[tower])
        >>> cache.get(tokens, lambda tokens: torch.zeros(1, 2), towers=[tower]) is first
        True
    """

    def __init__(self, max_texts: int = 1024) -> None:
        self.max_texts = max_texts
        self._embeddings: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._weights: list[tuple[WeakIdRef, int]] = []

    def __len__(self) -> int:
        """Number of texts that are kept at the moment."""
        return sum(map(len, self._embeddings.values()))

    def __reduce__(self) -> tuple[type[TextCache], tuple[int]]:
        """Copies, also those in other processes, begin empty: their weights are other tensors."""
        return type(self), (self.max_texts,)

    def clear(self) -> None:
        """Remove all embeddings."""
        self._embeddings.clear()

    def get(
        self,
        tokens: Mapping[str, Tensor],
        encode: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        towers: Sequence[nn.Module],
    ) -> Tensor:
        """Embeddings of a batch of texts, encoded now or earlier.

        Args:
            tokens: what the tower reads of B texts, on the CPU.
            encode: `tokens` to embeddings (B, D).
            towers: the modules that `encode` runs.

        Returns:
            (B, D), not to be written to; with a gradient to the weights where they require one.

        B: number of texts, D: dimension of the embeddings.
        """
        tensors = _tensors(towers)
        if not _is_settled(towers, tensors):
            return encode(tokens)
        self._forget_if_changed(tensors)
        key = _key(tokens, tensors[0].device)
        if key not in self._embeddings:
            with torch.inference_mode(False), torch.no_grad():  # inference tensors cannot be used in autograd later
                embeddings = encode(tokens)
            self._keep(key, embeddings)
            return embeddings
        self._embeddings.move_to_end(key)
        return self._embeddings[key]

    def _forget_if_changed(self, tensors: Sequence[Tensor]) -> None:
        """Compare storages themselves, not addresses: a new storage may get the address of a freed one."""
        pairs = zip(tensors, self._weights, strict=False)
        same = (ref() is tensor.untyped_storage() and version == tensor._version for tensor, (ref, version) in pairs)
        if len(tensors) != len(self._weights) or not all(same):
            self.clear()
            self._weights = [(WeakIdRef(tensor.untyped_storage()), tensor._version) for tensor in tensors]

    def _keep(self, key: Hashable, embeddings: Tensor) -> None:
        self._embeddings[key] = embeddings
        while len(self) > self.max_texts:
            self._embeddings.popitem(last=False)


def _tensors(towers: Sequence[nn.Module]) -> list[Tensor]:
    # Checked in every call: this is four times as fast as `parameters()` and `buffers()`.
    held: list[Tensor | None] = []
    waiting: list[nn.Module | None] = list(towers)
    seen: set[nn.Module] = set()
    while waiting:
        module = waiting.pop()
        if module is not None and module not in seen:
            seen.add(module)
            held += (*module._parameters.values(), *module._buffers.values())
            waiting += module._modules.values()
    return [tensor for tensor in held if tensor is not None]


def _is_settled(towers: Sequence[nn.Module], tensors: Sequence[Tensor]) -> bool:
    """Whether the same texts give the same embeddings next time, and a change of the weights would be seen.

    It would not be seen on the meta device (also while weights are offloaded), nor for weights made in inference mode,
    whose versions PyTorch does not count.
    """
    trains = any(tower.training for tower in towers)
    differentiates = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    uncounted = any(tensor.is_meta or tensor.is_inference() for tensor in tensors)
    return bool(tensors) and not (trains or differentiates or uncounted)


def _key(tokens: Mapping[str, Tensor], device: torch.device) -> Hashable:
    """What the embeddings depend on besides the weights: the tokens, and the precision of autocast."""
    precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return precision, tuple((name, tuple(ids.shape), ids.numpy().tobytes()) for name, ids in sorted(tokens.items()))
