"""Run models on PyTorch's meta device: shapes without numbers, counted in bytes and operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from fk_reward.rewards import Reward

BLOCK_BYTES = 512
"""Tensors on a GPU take whole blocks of this size: `kMinBlockSize` of PyTorch's CUDACachingAllocator."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it, for as long as they live.

    What each operation returns is counted, once for each storage, and subtracted when the storage is freed. What an
    operation needs only while it runs (the workspace of a convolution) is not seen. Tensors from before do not count,
    except those that are `held`: when they are freed or replaced, their bytes are subtracted, too.

    Args:
        held: tensors from before, such as weights that may be converted meanwhile.

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
        self.live = self.peak = 0  # the held ones are known now; they count below 0 once they are freed

    def restart(self) -> None:
        """Forget the peak: from now on it is that of what follows."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Arguments first: a tensor from before is noted without bytes, so that a view of it is not taken for new.
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


_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class FusedAttention(TorchFunctionMode):
    """Sends `scaled_dot_product_attention` of meta tensors to a fused kernel.

    On the meta device PyTorch uses the one that materialises queries times keys, which GPUs avoid. The fused kernels of
    all devices return the same: the output, and a number for each query.

    Example:
        >>> q = torch.empty(1, 2, 5, 8, device="meta")
        >>> with FusedAttention():
        ...     functional.scaled_dot_product_attention(q, q, q).shape
        torch.Size([1, 2, 5, 8])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        values = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            fused = _fused(*args, **values)
            if fused is not None:
                return fused
        return func(*args, **values)


def _fused(  # noqa: PLR0913, PLR0917 (PyTorch's signature)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The output; None for real tensors, and for shapes that the kernel does not take, which are left to PyTorch."""
    if not (query.is_meta or key.is_meta or value.is_meta) or query.ndim != 4:
        return None
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    return _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def flop_counter() -> FlopCounterMode:
    """Make PyTorch's counter of floating-point operations, extended by the fused kernel.

    Example:
        >>> q = torch.empty(1, 2, 5, 8, device="meta")
        >>> with flop_counter() as counter, FusedAttention():
        ...     _ = functional.scaled_dot_product_attention(q, q, q)
        >>> counter.get_total_flops() == 2 * 2 * (2 * 5 * 5 * 8)
        True
    """
    return FlopCounterMode(display=False, custom_mapping={_FUSED: _flops})


def _flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_META = torch.device("meta")


class MetaTensors(TorchDispatchMode):
    """Lets operations mix tensors of shapes alone ("meta") with tensors of numbers.

    What depends on a weight or an image has a shape and no numbers. Everything else (tokens, masks, positions, whose
    numbers models read) stays on the CPU, even if it is made on or moved to the meta device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = dict(kwargs or {})
        if not any(leaf.device == _META for leaf in tree_leaves((args, values)) if isinstance(leaf, Tensor)):
            if values.get("device") is not None and torch.device(values["device"]) == _META:
                values["device"] = torch.device("cpu")
            return func(*args, **values)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        args, values = tree_map_only(Tensor, _on_meta, (args, values))
        return func(*args, **values)


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.device == _META else torch.empty_like(tensor, device=_META)


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Turn masks into the indices where they are true, whose number decides the shape of the result."""
    places: list[Tensor | None] = []
    for index in indices:
        places += index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index]
    return places


def count_flops(reward: Reward, image_size: int, prompt: str) -> int:
    """Count the floating-point operations of scoring one image: two for each multiplication in a matrix product.

    Matrix products, convolutions and attention count, as in `torch.utils.flop_counter`; attention as if none of it were
    masked. Nothing is computed: meanwhile the weights are replaced by their shapes.

    Args:
        reward: one whose `score` is a forward pass, on any device.
        image_size: side of the square image in pixels.
        prompt: its prompt; the number of its tokens counts.

    Raises:
        NotImplementedError: from PyTorch, if a number is read that depends on a weight or on the image.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> layer = torch.nn.Linear(12, 5)
        >>> reward = CallableReward(lambda images, prompts: layer(images.flatten(1)).sum(dim=1), "layer")
        >>> reward.layer = layer  # what a reward holds is found
        >>> count_flops(reward, 2, "a cat")
        120
    """
    image = torch.empty(1, 3, image_size, image_size, device=_META)
    with without_weights(reward), torch.no_grad(), FlopCounterMode(display=False) as counter, MetaTensors():
        reward.score(image, [prompt])
    return counter.get_total_flops()


@contextmanager
def without_weights(reward: Reward) -> Iterator[None]:
    """Put a reward on the meta device; afterwards its tensors are restored, since other rewards may share them."""
    modules = [module for held in reward._held_modules() for module in held.modules()]
    saved = [(module, dict(module._parameters), dict(module._buffers)) for module in modules]
    reward.to("meta")
    try:
        yield
    finally:
        for module, parameters, buffers in saved:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
