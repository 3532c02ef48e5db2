"""A batch of particles taken apart along its rows, and the outputs put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

POSITIONS = ("img_ids", "txt_ids", "image_rotary_emb", "visual_rope_pos", "text_rope_pos")
"""Arguments that all rows share: tables of positions, whose first side may equal the batch by chance."""


@dataclass(frozen=True)
class BatchLayout:
    """Where the particles stand in a batch: `num_blocks` times the same particles, one block after the other.

    Diffusers' guidance makes such blocks: two of them (unconditional, conditional), three with perturbed attention.
    A part of the batch holds the rows of its particles in every block, so that it is the batch that the pipeline
    would have sent with that many particles, and attention processors that split it into its blocks still can.

    Attributes:
        num_blocks: 1 without guidance.
        num_particles: of one block.

    Example:
        >>> layout = BatchLayout.of(6, num_particles=3)
        >>> layout.take(torch.arange(6), 1, 3)
        tensor([1, 2, 4, 5])
        >>> layout.join([torch.tensor([0, 3]), torch.tensor([1, 2, 4, 5])])
        tensor([0, 1, 2, 3, 4, 5])
    """

    num_blocks: int
    num_particles: int

    @classmethod
    def of(cls, num_rows: int, *, num_particles: int) -> BatchLayout:
        """The layout of a batch of the particles of a call; of a batch that does not hold them evenly, its rows."""
        blocks, rest = divmod(num_rows, num_particles)
        return cls(blocks, num_particles) if rest == 0 else cls(1, num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.num_blocks * self.num_particles

    def take(self, value: Any, start: int, stop: int, *, name: str = "") -> Any:
        """The part of particles `start` to `stop` (exclusive) of an argument.

        Args:
            value: tensors `(num_rows, ...)`, also inside mappings, lists and tuples. Everything else is shared by all
                particles and stays as it is: other tensors, numbers, None.
            start: first particle.
            stop: behind the last one.
            name: of the argument, by which `POSITIONS` are known.
        """
        if isinstance(value, Tensor):
            if not self._has_rows(value, name):
                return value
            return value.unflatten(0, (self.num_blocks, self.num_particles))[:, start:stop].flatten(0, 1)
        if isinstance(value, Mapping):
            return {key: self.take(item, start, stop, name=key) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, start, stop, name=name) for item in value)
        return value

    def join(self, parts: Sequence[Any]) -> Any:
        """The output of the whole batch from the outputs of its parts, which are in order.

        Args:
            parts: tensors, or mappings (Diffusers' `BaseOutput`), lists or tuples of them; of anything else the first.

        Raises:
            ValueError: when the tensors do not add up to the rows of the batch.
        """
        first = parts[0]
        if isinstance(first, Tensor):
            return self._joined(parts)
        if isinstance(first, Mapping):
            return type(first)(**{key: self.join([part[key] for part in parts]) for key in first})
        if isinstance(first, list | tuple):
            return type(first)(self.join(items) for items in zip(*parts, strict=True))
        return first

    def _has_rows(self, value: Tensor, name: str) -> bool:
        if name in POSITIONS and value.ndim < 3:
            return False
        return value.ndim > 0 and len(value) == self.num_rows

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        rows = [len(part) if part.ndim else 0 for part in parts]
        if sum(rows) != self.num_rows or any(count % self.num_blocks for count in rows):
            raise ValueError(
                f"Micro-batches of a batch of {self.num_rows} rows gave outputs of {rows} rows, which do not add up: "
                "this model cannot be run in micro-batches."
            )
        return torch.cat([part.unflatten(0, (self.num_blocks, -1)) for part in parts], dim=1).flatten(0, 1)


def batch_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch that a model is called with: of the first tensor of at least two sides; 0 if there is none.

    Example:
        >>> batch_rows((torch.zeros(4, 3), torch.tensor(1.0)), {})
        4
    """
    return next((len(value) for value in _tensors(args, kwargs) if value.ndim > 1), 0)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
