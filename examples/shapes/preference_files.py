"""Preferences in memory, and as Parquet files that `fk_reward.training.read_preferences` reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from fk_reward.shapes import ShapesPrompt


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images `(3, H, W)` uint8, each under its prompt, the first the better one; `kind` says how it was made."""

    prompt: ShapesPrompt
    rejected_prompt: ShapesPrompt
    chosen: Tensor
    rejected: Tensor
    kind: str


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """An image `(3, H, W)` uint8 under a caption, and whether it is as it should be."""

    prompt: ShapesPrompt
    image: Tensor
    label: bool
    kind: str


def png(image: Tensor) -> bytes:
    """An image `(3, H, W)` uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "png")
    return buffer.getvalue()


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Writes pairs; `prompt` is a list of two, of the chosen and of the rejected image, if they differ anywhere."""
    prompts = [[pair.prompt.text, pair.rejected_prompt.text] for pair in pairs]
    two = any(first != second for first, second in prompts)
    columns = {
        "prompt": prompts if two else [first for first, _ in prompts],
        "chosen_image": [png(pair.chosen) for pair in pairs],
        "rejected_image": [png(pair.rejected) for pair in pairs],
        "kind": [pair.kind for pair in pairs],
    }
    _write(columns, path)


def write_labelled(rows: Sequence[Labelled], path: Path) -> None:
    """Writes labelled images."""
    columns = {
        "prompt": [row.prompt.text for row in rows],
        "image": [png(row.image) for row in rows],
        "label": [int(row.label) for row in rows],
        "kind": [row.kind for row in rows],
    }
    _write(columns, path)


def _write(columns: dict[str, list], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
