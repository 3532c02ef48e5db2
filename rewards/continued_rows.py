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
        if self._cache is not None:
            self._inputs = {name: inputs[name] for name in ("position_ids", "attention_mask") if name in inputs}

    def write(self, ids: Tensor) -> Tensor:
        """Go on behind the rows for good.

        Args:
            ids: (B, n) of the tokens that follow, of each row.

        Returns:
            `logits`, as they are now.
        """
        self._inputs = self._followed_by(ids)
        self.logits = self._logits(self._inputs, ids)
        return self.logits

    def peek(self, ids: Tensor) -> Tensor:
        """What `write` would return; nothing is written."""
        layers = [] if self._cache is None else self._cache.layers
        before = [(layer.keys, layer.values) for layer in layers]
        logits = self._logits(self._followed_by(ids), ids)
        for layer, (keys, values) in zip(layers, before, strict=True):
            layer.keys, layer.values = keys, values  # longer ones were other tensors: nothing is cut off or copied
        return logits

    def _followed_by(self, ids: Tensor) -> dict[str, Tensor]:
        """Inputs with ids behind them; where keys and values are kept, of positions those of the ids alone."""
        kept = self._cache is not None
        inputs = dict(self._inputs) if kept else with_answer(self._inputs, ids)
        if kept and "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask, mask.new_ones(ids.shape)], dim=1)
        if "position_ids" in inputs:  # text behind an image is counted on by ones
            before = inputs["position_ids"]
            behind = before[..., -1:] + torch.arange(1, ids.shape[1] + 1, device=before.device)
            inputs["position_ids"] = behind if kept else torch.cat([before, behind], dim=-1)
        return inputs

    def _logits(self, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
        new = {} if self._cache is None else {"input_ids": ids, "past_key_values": self._cache}
        output = self._model(**inputs | new, **self._options, use_cache=self._cache is not None)
        return output.logits[:, -1].float()


def _can_be_shortened(cache: Any) -> bool:
    """Whether what was kept before the last tokens is still there: windows and recurrent states have forgotten it."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
