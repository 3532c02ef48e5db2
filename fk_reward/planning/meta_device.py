"""Run models on PyTorch's meta device: shapes without numbers, counted in bytes and operations."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

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
        self._known: dict[int, Any] = {}  # id of a storage that lives -> weak reference to it
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
        values = kwargs or {}
        for tensor in _tensors((*args, *values.values())):
            self._meet(tensor, new=False)
        result = func(*args, **values)
        for tensor in _tensors((result,)):
            self._meet(tensor, new=True)
        return result

    def _meet(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES if new else 0
        self._known[key] = weakref.ref(storage, functools.partial(self._free, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.live -= size


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among operands or results, and in the sequences among these."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


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


class Operations(TorchDispatchMode):
    """Counts floating-point operations as `flop_counter` does, and remembers what operations on meta tensors return.

    Without numbers a result follows from the shapes, strides and dtypes of the operands. PyTorch derives it in Python,
    which takes most of the time of a plan, and models repeat their blocks: so equal operations are derived once.

    Attributes:
        total: floating-point operations since the start.

    Example:
        >>> layer, x = torch.nn.Linear(12, 5, device="meta"), torch.empty(1, 12, device="meta")
        >>> with Operations() as operations:
        ...     shapes = [layer(x).shape for _ in range(2)]
        >>> shapes, operations.total
        ([torch.Size([1, 5]), torch.Size([1, 5])], 240)
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = kwargs or {}
        signature = _signature(func, args, values)
        if signature in _OUTCOMES:
            outcome = _OUTCOMES[signature]
            self.total += outcome.flops
            return outcome.result()
        result, flops = _counted(func, args, values) if _can_count(func) else (func(*args, **values), 0)
        self.total += flops
        if signature is not None:
            _remember(signature, _outcome(result, flops, operands=_tensors((*args, *values.values()))))
        return result


@functools.cache
def _can_count(func: Any) -> bool:
    """Whether PyTorch's counter knows an operation, or the parts that it is made of."""
    return func._overloadpacket in flop_counter().flop_registry or func._can_decompose()


def _counted(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
    with flop_counter() as counter:
        result = func(*args, **kwargs)
    return result, counter.get_total_flops()


class _Shape(NamedTuple):
    """A tensor without numbers."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Shape:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def make(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=_META)


class _Outcome(NamedTuple):
    """Returned tensors, in a `kind` of sequence or, if that is None, one by itself; and floating-point operations."""

    shapes: tuple[_Shape, ...]
    kind: type | None
    flops: int

    def result(self) -> Any:
        made = [shape.make() for shape in self.shapes]
        return made[0] if self.kind is None else self.kind(made)


def _outcome(result: Any, flops: int, *, operands: Iterable[Tensor]) -> _Outcome | None:
    """What an operation returned; None unless it is new tensors without numbers, each filling a storage of its own."""
    kind = None if isinstance(result, Tensor) else type(result)
    tensors = [result] if kind is None else result
    if kind not in (None, list, tuple) or not all(isinstance(x, Tensor) and x.is_meta for x in tensors):
        return None
    outcome = _Outcome(tuple(map(_Shape.of, tensors)), kind, flops)
    storages = [tensor.untyped_storage() for tensor in tensors]
    filled = [shape.make().untyped_storage().nbytes() for shape in outcome.shapes]
    own = {id(storage) for storage in storages} - {id(tensor.untyped_storage()) for tensor in operands}
    is_new = len(own) == len(storages) and filled == [storage.nbytes() for storage in storages]
    return outcome if is_new else None


_OUTCOMES: dict[Any, _Outcome] = {}
_MOST_OUTCOMES = 2**14  # a plan of SDXL with LLaVA-Reward has about 700

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _signature(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What decides the result of an operation on meta tensors; None if it is not known to."""
    if _writes_or_views(func):
        return None
    try:
        described = _described(args), tuple(kwargs), _described(kwargs.values())
    except TypeError:
        return None
    return (func, torch.get_default_dtype(), *described)


@functools.cache
def _writes_or_views(func: Any) -> bool:
    """Whether an operation may change an operand, or return it or a view of it."""
    schema = func._schema
    return schema.is_mutable or any(value.alias_info is not None for value in schema.returns)


def _described(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(map(_description, values))


def _description(value: Any) -> Any:
    """Raises TypeError for tensors with numbers, and for what has no value, such as a generator."""
    if isinstance(value, Tensor) and value.is_meta and value.layout == torch.strided:
        return _Shape.of(value)
    if isinstance(value, list | tuple):
        return _described(value)
    if isinstance(value, _PLAIN):
        return type(value), value  # 1 and 1.0 are equal
    raise TypeError(type(value))


def _remember(signature: Any, outcome: _Outcome | None) -> None:
    if outcome is None:
        return
    if len(_OUTCOMES) >= _MOST_OUTCOMES:
        _OUTCOMES.clear()
    _OUTCOMES[signature] = outcome


class MetaTensors(TorchDispatchMode):
    """Lets operations mix tensors of shapes alone ("meta") with tensors of numbers.

    What depends on a weight or an image has a shape and no numbers. Everything else (tokens, masks, positions, whose
    numbers models read) stays on the CPU, even if it is made on or moved to the meta device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = dict(kwargs or {})
        without_numbers = [tensor.is_meta for tensor in _tensors((*args, *values.values()))]
        if not any(without_numbers):
            if values.get("device") is not None and torch.device(values["device"]) == _META:
                values["device"] = torch.device("cpu")
            return func(*args, **values)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        if not all(without_numbers):
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
    with without_weights(reward), torch.no_grad(), Operations() as operations, MetaTensors():
        reward.score(image, [prompt])
    return operations.total


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
