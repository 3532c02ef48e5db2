"""The end of local answers that say enough, through transformers' own criteria."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class EnoughSaid(StoppingCriteria):
    """Ends each row of a batch by itself, as soon as its answer says enough; transformers pads it from there.

    Args:
        close: as in `Enough`.
        decode: rows of token ids -> their texts.
        start: place of the first token of the answers.

    Attributes:
        answers: for each row that was ended here the text that `close` gave for it, by its place in the batch.

    Example:
        >>> letters = lambda rows: ["".join(map(chr, row)) for row in rows]
        >>> criterion = EnoughSaid(lambda text: "b" if text == "b" else None, decode=letters, start=1)
        >>> criterion(torch.tensor([[63, 97], [63, 98]]), None), criterion.answers
        (tensor([False,  True]), {1: 'b'})
    """

    def __init__(
        self, close: Callable[[str], str | None], *, decode: Callable[[Tensor], list[str]], start: int
    ) -> None:
        self.answers: dict[int, str] = {}
        self._close, self._decode, self._start = close, decode, start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row is done, (B,) bool; `scores` are not read."""
        pending = [row for row in range(len(input_ids)) if row not in self.answers]
        # All texts from their beginning: a token may end in the middle of a character, or of a word of the tokenizer.
        for row, text in zip(pending, self._decode(input_ids[pending, self._start :]), strict=True):
            closed = self._close(text)
            if closed is not None:
                self.answers[row] = closed
        return torch.tensor([row in self.answers for row in range(len(input_ids))], device=input_ids.device)
