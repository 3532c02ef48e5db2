"""Rows of tokens and images that a model has read, and goes on behind without reading them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from fk_reward.rewards.answer_inputs import with_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ContinuedRows:
    """Reads rows once, images included, and then only what is written behind them.

    Keys and values of attention are kept, as in generation. A model that keeps something else (a sliding window, a
    recurrent state), from which the end cannot be taken off again, reads everything anew each time: the logits are the
    same.

    Args:
        model: decoder-only.
        inputs: what it reads of B rows that are padded on the left, on its device.
        options: further arguments of every pass, such as `logits_to_keep`.

    Attributes:
        logits: (B, V) float32 of the token that comes next behind what is written, before softmax.

    B: number of rows, V: size of the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Any], **options: Any) -> None:
        self._model, self._inputs, self._options = model, dict(inputs), options
        output = model(**inputs, **options, use_cache=True)
        self._cache = output.past_key_values if _can_be_shortened(output.past_key_values) else None
        self.logits = output.logits[:, -1].float()

    def write(self, ids: Tensor) -> Tensor:
        """Go on behind the rows for good.

        Args:
            ids: (B, n) of the tokens that follow, of each row.

        Returns:
            `logits`, as they are now.
        """
        self._inputs = self._followed_by(ids)
        self.logits = self._logits(self._inputs, num_new=ids.shape[1])
        return self.logits

    def peek(self, ids: Tensor) -> Tensor:
        """What `write` would return; nothing is written."""
        logits = self._logits(self._followed_by(ids), num_new=ids.shape[1])
        if self._cache is not None:
            self._cache.crop(-ids.shape[1])
        return logits

    def _followed_by(self, ids: Tensor) -> dict[str, Any]:
        inputs = with_answer(self._inputs, ids)
        if "position_ids" in inputs:  # text behind an image is counted on by ones
            last = self._inputs["position_ids"][..., -1:]
            behind = last + torch.arange(1, ids.shape[1] + 1, device=last.device)
            inputs["position_ids"] = torch.cat([self._inputs["position_ids"], behind], dim=-1)
        return inputs

    def _logits(self, inputs: dict[str, Any], *, num_new: int) -> Tensor:
        if self._cache is None:
            return self._model(**inputs, **self._options, use_cache=False).logits[:, -1].float()
        new = {name: inputs[name][..., -num_new:] for name in ("input_ids", "position_ids") if name in inputs}
        if "attention_mask" in inputs:
            new["attention_mask"] = inputs["attention_mask"]  # also of what was read
        output = self._model(**new, **self._options, past_key_values=self._cache, use_cache=True)
        return output.logits[:, -1].float()


def _can_be_shortened(cache: Any) -> bool:
    """Whether the last tokens can be taken off: not from windows and recurrent states, which have forgotten others."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
