"""Rows of tokens with one image each: padded, and their positions, put together from what the model says once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fk_reward.rewards.kept_batches import KeptBatches

RowT = TypeVar("RowT", bound=Hashable)
_SECOND = {"position_ids"}
"""Tensors whose rows are their second dimension."""


class RowPositions:
    """What a model's `get_rope_index` gives for rows with one image, without a loop over their tokens for each.

    Text behind an image is counted on by ones, so that of all rows whose image is in the same place one is asked about,
    as far as the first token behind the image. The first batch is compared with the model's own answer; a model that
    counts otherwise is asked about every batch.

    Args:
        rope_index: the model's `get_rope_index`.
    """

    def __init__(self, rope_index: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.rope_index = rope_index
        self._begins: KeptBatches = KeptBatches()
        self._counts_on: bool | None = None  # not known before the first batch

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions (D, B, S) of rows that are padded on either side.

        Args:
            inputs: `input_ids`, `mm_token_type_ids` and `attention_mask`, each (B, S), and `image_grid_thw` (B, 3), on
                the CPU.

        B: number of rows, S: their length, D: number of dimensions.
        """
        if self._counts_on is None:
            expected = self._of_model(inputs)
            self._counts_on = torch.equal(self._counted(inputs), expected)
            return expected
        return self._counted(inputs) if self._counts_on else self._of_model(inputs)

    def _of_model(self, inputs: Mapping[str, Tensor]) -> Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        return self.rope_index(**{name: inputs[name] for name in names})[0]

    def _counted(self, inputs: Mapping[str, Tensor]) -> Tensor:
        rows, known = [], {}
        kinds, masks = inputs["mm_token_type_ids"].numpy(), inputs["attention_mask"].numpy().astype(bool)
        for types, mask, grid in zip(kinds, masks, inputs["image_grid_thw"].tolist(), strict=True):
            key = (types.tobytes(), mask.tobytes(), *grid)  # prompts of one length share a row
            if key not in known:
                known[key] = self._row(types, mask, grid)
            rows.append(known[key])
        return torch.from_numpy(np.stack(rows, axis=1))

    def _row(self, types: np.ndarray, mask: np.ndarray, grid: list[int]) -> np.ndarray:
        real = types[mask]
        types_before = real[: np.flatnonzero(real)[-1] + 1]
        begin = self._begin(types_before, grid)
        behind = begin[:, -1:] + np.arange(len(real) - len(types_before))
        row = np.repeat(begin[:, :1], len(types), axis=1)
        row[:, mask] = np.concatenate([begin[:, 1:-1], behind], axis=1)
        return row

    def _begin(self, types: np.ndarray, grid: list[int]) -> np.ndarray:
        """(D, n + 2): position of padding, of n tokens that end with the image, and of the token behind it."""
        key = (types.tobytes(), *grid)
        return self._begins.get(key, lambda: self._asked(types, grid))

    def _asked(self, types: np.ndarray, grid: list[int]) -> np.ndarray:
        row = torch.from_numpy(np.concatenate([[0], types, [0]]))[None]
        mask = torch.ones_like(row)
        mask[0, 0] = 0
        ids = torch.zeros_like(row)  # types alone say what is an image
        grids = torch.tensor([grid])
        inputs = {"input_ids": ids, "mm_token_type_ids": row, "attention_mask": mask, "image_grid_thw": grids}
        return self._of_model(inputs)[:, 0].numpy()


def padded_rows(rows: Sequence[np.ndarray], value: int, *, on_the_left: bool) -> Tensor:
    """(B, S) of rows of whole numbers, in a tenth of the time that PyTorch takes to read lists of lists.

    Args:
        rows: B arrays of any lengths.
        value: of the padding.
        on_the_left: where the padding is.

    Example:
        >>> padded_rows([np.array([1, 2]), np.array([3])], 0, on_the_left=True)
        tensor([[1, 2],
                [0, 3]])
    """
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[-len(row) if on_the_left else 0 :][: len(row)] = row
    return torch.from_numpy(padded)


def rows_made_once(rows: Sequence[RowT], make: Callable[[Sequence[RowT]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of rows of which many are alike, such as those of the particles of one prompt: each is made once.

    Args:
        rows: B, what each row is made of.
        make: makes the tensors of some rows: (B, ...), and (D, B, S) of `position_ids`.

    Example:
        >>> rows_made_once(["a", "bc", "a"], lambda rows: {"length": torch.tensor([len(row) for row in rows])})
        {'length': tensor([1, 2, 1])}
    """
    places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
    made = make(list(places))
    if len(places) == len(rows):
        return made
    chosen = [places[row] for row in rows]
    # by NumPy, whose calls cost the host a tenth of PyTorch's
    return {
        name: torch.from_numpy(value.numpy().take(chosen, axis=int(name in _SECOND))) for name, value in made.items()
    }
