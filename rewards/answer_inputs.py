"""What an image-text-to-text model reads besides pixels, made from texts and the size of the images alone.

A processor of transformers resizes, normalises and cuts every image only to count its tokens, where the tensors of the
images replace the result anyway. Here its image processor is replaced by one that counts, and the placeholder of an
image is written out in token ids instead of text: tokenising thousands of placeholders takes longer than the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.row_positions import RowPositions, padded_rows, rows_made_once

ImageSize = tuple[int, int]
"""Height and width in pixels."""

_TOKEN_LEVEL = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class Expansion:
    """What stands for one image of some size.

    Attributes:
        ids: (n,) token ids in the place of the placeholder.
        types: (n,) of `mm_token_type_ids`; None where the processor gives none.
        extras: what else the processor gives for an image, each (1, ...).
    """

    ids: np.ndarray
    types: np.ndarray | None
    extras: Mapping[str, Tensor]


class CountingImageProcessor:
    """Stands in for an image processor: gives shapes and grids of what it would make, without making it.

    Args:
        original: the image processor; all other attributes are read from it.
        transform: what makes the pixels of tensors (B, 3, H, W) in its place; with a method `grid`, if the model reads
            one.
    """

    def __init__(self, original: Any, transform: Callable[[Tensor], Tensor]) -> None:
        self.original, self.transform = original, transform

    def __getattr__(self, name: str) -> Any:
        if name == "original":  # not there yet while an instance is copied
            raise AttributeError(name)
        return getattr(self.original, name)

    def __call__(self, images: Sequence[Any], *_: Any, return_tensors: str | None = None, **__: Any) -> BatchFeature:
        """Shapes of the pixel values of images, as zeros that take no memory, and their grids."""
        sizes = [image.size[::-1] for entry in images for image in (entry if isinstance(entry, list) else [entry])]
        # On the meta device, nothing is computed but the shape.
        shapes = [self.transform(torch.empty(1, 3, *size, device="meta")).shape for size in sizes]
        rows = torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        data: dict[str, Any] = {"pixel_values": torch.zeros(()).expand(rows)}
        if hasattr(self.transform, "grid"):
            data["image_grid_thw"] = torch.tensor([(1, *self.transform.grid(*size)) for size in sizes])
        return BatchFeature(data, tensor_type=return_tensors)


class PromptInputs:
    """Makes the inputs of texts about one image each, and keeps those of the last batches.

    Args:
        processor: of the model; not changed.
        transform: what makes its pixel values of tensors.
        rope_index: the model's `get_rope_index`, if it has positions of three dimensions.

    Raises:
        ValueError: when the transform does not make what the processor makes of an image.
    """

    def __init__(
        self,
        processor: Any,
        transform: Callable[[Tensor], Tensor],
        *,
        rope_index: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.processor = processor
        if hasattr(processor, "image_processor"):
            self.processor = copy.copy(processor)  # shallow: it shares the tokenizer
            self.processor.image_processor = CountingImageProcessor(processor.image_processor, transform)
            with torch.device("cpu"):
                self._check(processor)
        self._row_positions = None if rope_index is None else RowPositions(rope_index)
        self._expansions: dict[ImageSize, Expansion | None] = {}
        self._batches = KeptBatches()

    def __call__(self, texts: Sequence[str], size: ImageSize, *, answer: Sequence[int] = ()) -> dict[str, Tensor]:
        """Tokenise texts about images of one size.

        Args:
            texts: B texts with the placeholder of one image each, where the processor has one.
            size: of the images.
            answer: token ids that each row ends in.

        Returns:
            What the processor gives but `pixel_values`, on the CPU; (B, S) padded on the tokenizer's side; for a model
            with positions of three dimensions also `position_ids` (3, B, S). Not to be written to.

        B: number of images, S: length of the longest row.
        """
        key = (tuple(texts), size, tuple(answer), self.processor.tokenizer.padding_side)
        return self._batches.get(key, lambda: self._make(texts, size, answer))

    def _make(self, texts: Sequence[str], size: ImageSize, answer: Sequence[int]) -> dict[str, Tensor]:
        # Also where a model is made on the meta device, whose tensors have no values.
        with torch.device("cpu"):
            return rows_made_once(texts, lambda distinct: self._positioned(distinct, size, answer))

    def _positioned(self, texts: Sequence[str], size: ImageSize, answer: Sequence[int]) -> dict[str, Tensor]:
        inputs = self._written_out(texts, size, answer) or self._processed(texts, size, answer)
        if self._row_positions is not None and {"image_grid_thw", "mm_token_type_ids"} <= inputs.keys():
            inputs["position_ids"] = self._row_positions(inputs)
        return inputs

    def _processed(self, texts: Sequence[str], size: ImageSize, answer: Sequence[int]) -> dict[str, Tensor]:
        """By the processor itself, for those that write more than a placeholder (BLIP-2, InstructBLIP)."""
        nested = [[_blank(size)] for _ in texts]  # a list for each text: every processor accepts this
        inputs = dict(self.processor(images=nested, text=list(texts), padding=True, return_tensors="pt"))
        inputs.pop("pixel_values", None)
        return with_answer(inputs, answer) if answer else inputs

    def _written_out(self, texts: Sequence[str], size: ImageSize, answer: Sequence[int]) -> dict[str, Tensor] | None:
        """By token ids; None where that would not give what the processor gives."""
        if size not in self._expansions:
            self._expansions[size] = self._expansion(size)
        expansion = self._expansions[size]
        if expansion is None:
            return None
        pairs = [self._row(ids, expansion, answer) for ids in self.processor.tokenizer(list(texts))["input_ids"]]
        if None in pairs:
            return None
        rows, types = zip(*filter(None, pairs), strict=True)
        inputs = {
            "input_ids": self._padded(rows, self.processor.tokenizer.pad_token_id),
            "attention_mask": self._padded([np.ones_like(row) for row in rows], 0),
        }
        if expansion.types is not None:
            inputs["mm_token_type_ids"] = self._padded(types, 0)
        return inputs | {
            name: value.repeat(len(rows), *[1] * (value.ndim - 1)) for name, value in expansion.extras.items()
        }

    def _row(self, ids: list[int], expansion: Expansion, answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids and types of a text whose placeholder is written out; None for one without a placeholder, or several."""
        token = self._image_id()
        if token is None or ids.count(token) != 1:
            return None
        # Arrays, because PyTorch takes ten times as long as NumPy to read lists of lists.
        place, written = ids.index(token), np.array([*ids, *answer], dtype=np.int64)
        row = np.concatenate([written[:place], expansion.ids, written[place + 1 :]])
        types = np.zeros_like(row)
        if expansion.types is not None:
            types[place : place + len(expansion.ids)] = expansion.types
        return row, types

    def _expansion(self, size: ImageSize) -> Expansion | None:
        """What the processor writes for an image, found in a text of two letters around one."""
        token = str(getattr(self.processor, "image_token", None) or "")
        image_id = self._image_id()
        if not token or image_id is None or not hasattr(self.processor, "image_processor"):
            return None
        text = f"a{token}b"
        plain = self.processor.tokenizer(text)["input_ids"]
        full = dict(self.processor(images=[[_blank(size)]], text=[text], return_tensors="pt"))
        full.pop("pixel_values", None)
        ids = full["input_ids"][0].tolist()
        if plain.count(image_id) != 1:
            return None
        before = plain.index(image_id)
        after = len(ids) - (len(plain) - before - 1)
        types = full["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in full else None
        extras = {name: value for name, value in full.items() if name not in _TOKEN_LEVEL}
        around = ids[:before] + ids[after:] == plain[:before] + plain[before + 1 :]
        unknown = any(len(value) != 1 or value.shape[1:] == (len(ids),) for value in extras.values())
        if not around or unknown or (types and any(types[:before] + types[after:])):
            return None
        return Expansion(np.array(ids[before:after]), np.array(types[before:after]) if types else None, extras)

    def _image_id(self) -> int | None:
        token = getattr(self.processor, "image_token", None)
        return None if token is None else self.processor.tokenizer.convert_tokens_to_ids(str(token))

    def _padded(self, rows: Sequence[np.ndarray], value: int) -> Tensor:
        return padded_rows(rows, value, on_the_left=self.processor.tokenizer.padding_side == "left")

    def _check(self, processor: Any) -> None:
        """Against the processor itself, on one small image."""
        token = getattr(processor, "image_token", None) if getattr(processor, "chat_template", None) else None
        call: dict[str, Any] = {"images": [[_blank((48, 64))]], "text": [f"a{token or ''}b"], "return_tensors": "pt"}
        expected, got = dict(processor(**call)), dict(self.processor(**call))
        shapes = [{name: tuple(value.shape) for name, value in found.items()} for found in (expected, got)]
        rest = [{n: value.tolist() for n, value in found.items() if n != "pixel_values"} for found in (expected, got)]
        if shapes[0] != shapes[1] or rest[0] != rest[1]:
            raise ValueError(
                f"{type(processor).__name__} makes {shapes[0]} of an image of 48 x 64 pixels, the tensors made for it "
                f"are {shapes[1]}: its settings are not reproduced; please report the checkpoint."
            )


def _blank(size: ImageSize) -> Image.Image:
    """An image of which only the size counts."""
    return Image.new("RGB", size[::-1])


def with_answer(inputs: dict[str, Tensor], answer: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Let rows that are padded on the left end in further tokens.

    Args:
        inputs: of a processor; those of the shape of `input_ids` become longer.
        answer: token ids (n,) of all rows, or (B, n) of each.

    Example:
        >>> ids = torch.tensor([[0, 5]])
        >>> with_answer({"input_ids": ids, "attention_mask": ids.clamp(max=1)}, [7, 8])["attention_mask"]
        tensor([[0, 1, 1, 1]])

    B: number of rows, n: number of tokens.
    """
    shape = inputs["input_ids"].shape
    added = answer if isinstance(answer, Tensor) else torch.tensor(answer, device=inputs["input_ids"].device)
    added = added.expand(shape[0], -1)

    def end(name: str, value: Tensor) -> Tensor:
        if name == "input_ids":
            return added.to(value.dtype)
        return value.new_full(added.shape, int(name == "attention_mask"))

    return {
        name: torch.cat([value, end(name, value)], dim=1) if value.shape == shape else value
        for name, value in inputs.items()
    }
