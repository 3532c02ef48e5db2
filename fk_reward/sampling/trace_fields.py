"""The tensors of a trace: their types and shapes, said once, for validation and for reading from JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

STEP_DTYPES: dict[str, torch.dtype] = {
    "rewards": torch.float32,
    "log_weights": torch.float64,
    "ess": torch.float64,
    "ancestors": torch.int64,
    "thumbnails": torch.uint8,
}
TRACE_DTYPES: dict[str, torch.dtype] = {
    "reward_scale": torch.float64,
    "log_evidence": torch.float64,
    "selected": torch.int64,
}


def check_tensors(
    tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], *, forbidden: Collection[str] = ()
) -> None:
    """Check that each tensor is a finite CPU tensor of its type.

    Args:
        tensors: name -> tensor.
        dtypes: name -> the type it must have.
        forbidden: names of those that may be -inf where something is forbidden.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: on another device, or not finite.

    Example:
        >>> check_tensors({"ess": torch.ones(2, dtype=torch.float64)}, STEP_DTYPES)
        >>> check_tensors({"ess": torch.ones(2)}, STEP_DTYPES)
        Traceback (most recent call last):
        TypeError: ess: expected a torch.float64 tensor, got torch.float32.
    """
    for name, value in tensors.items():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        if got != dtypes[name]:
            raise TypeError(f"{name}: expected a {dtypes[name]} tensor, got {got}.")
        if value.device.type != "cpu":
            raise ValueError(f"{name}: expected a CPU tensor, got one on {value.device}; call .cpu().")
        allowed = torch.isfinite(value) | ((value == -torch.inf) if name in forbidden else False)
        if value.is_floating_point() and not allowed.all():
            raise ValueError(f"{name}: expected finite values, got {value.tolist()}.")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Check the shape of one tensor.

    Args:
        name: what the error message calls it.
        tensor: any tensor.
        expected: its shape; -1 stands for any size.

    Raises:
        ValueError: another shape.

    Example:
        >>> check_shape("rewards", torch.zeros(2, 4), (2, -1))
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))
    if not fits:
        raise ValueError(f"{name}: expected shape {expected}, got {shape}.")


def check_parts(parts: Mapping[str, Tensor], particles: tuple[int, int]) -> None:
    """Check the rewards of the parts of a composition: for each a finite float32 tensor, one number a particle.

    Args:
        parts: name -> tensor.
        particles: the shape (G, K).

    Raises:
        TypeError: as `check_tensors`.
        ValueError: as `check_tensors`, or another shape.

    Example:
        >>> check_parts({"clipscore": torch.zeros(2, 4)}, (2, 4))
    """
    named = {f"reward_parts[{name!r}]": tensor for name, tensor in parts.items()}
    check_tensors(named, dict.fromkeys(named, torch.float32), forbidden=named)
    for name, tensor in named.items():
        check_shape(name, tensor, particles)


def check_indices(name: str, indices: Tensor, size: int) -> None:
    """Check that all indices lie in [0, size).

    Args:
        name: what the error message calls them.
        indices: integer tensor of any shape.
        size: how many things they may point at.

    Raises:
        ValueError: an index outside.

    Example:
        >>> check_indices("ancestors", torch.tensor([0, 3]), 4)
    """
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"{name}: expected indices in [0, {size}), got {indices.tolist()}.")
