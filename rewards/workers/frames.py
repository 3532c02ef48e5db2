"""Messages between a process and its reward workers: JSON and raw numbers, of which neither side runs anything."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


def write_message(stream: BinaryIO, message: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> None:
    """Write one message: the length of its JSON, the JSON, and the numbers of the tensors.

    Args:
        stream: binary.
        message: plain values; the keys "shapes" and "dtypes" are taken.
        tensors: float32 or uint8, on any device.

    Raises:
        OSError: when nobody reads any more.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> write_message(stream, {"prompts": ["a cat"]}, [torch.ones(2)])
        >>> _ = stream.seek(0)
        >>> read_message(stream)
        ({'prompts': ['a cat']}, [tensor([1., 1.])])
    """
    arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
    shapes, dtypes = [array.shape for array in arrays], [str(array.dtype) for array in arrays]
    header = json.dumps({**message, "shapes": shapes, "dtypes": dtypes}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], list[Tensor]] | None:
    """Read one message; None where the other side has ended before it.

    Raises:
        EOFError: when it ends within a message.
    """
    start = stream.read(_LENGTH.size)
    if not start:
        return None
    (length,) = _LENGTH.unpack(start if len(start) == _LENGTH.size else _whole(stream, _LENGTH.size, start))
    message = json.loads(_whole(stream, length))
    tensors = [
        _tensor(stream, shape, _DTYPES[dtype])
        for shape, dtype in zip(message.pop("shapes"), message.pop("dtypes"), strict=True)
    ]
    return message, tensors


def _tensor(stream: BinaryIO, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    data = _whole(stream, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(data, dtype=dtype).reshape(*shape) if data else torch.empty(*shape, dtype=dtype)


def _whole(stream: BinaryIO, length: int, start: bytes = b"") -> bytearray:
    data = bytearray(start)
    while len(data) < length:
        part = stream.read(length - len(data))
        if not part:
            raise EOFError("the other process ended in the middle of a message")
        data += part
    return data
