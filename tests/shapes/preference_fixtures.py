"""Preferences in small, in the files of `make_preferences.py`: red images are right, but for fidelity blue ones."""

from __future__ import annotations

import io

import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

PROMPTS = ("a red circle", "two squares", "a star", "a blue cross")
SIZE = 28
"""Pixels, the crop of the tiny backbone."""


def png(channel, seed):
    """An image with much of one channel and noise."""
    pixels = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed)) * 0.3
    pixels[..., channel] += 0.7
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).byte().numpy()).save(buffer, "png")
    return buffer.getvalue()


def write_pairs(path, *, num=4, right=0, wrong=2, seed=0):
    """Pairs whose chosen images are of the channel `right`."""
    rows = range(seed, seed + num)
    columns = {
        "prompt": [[PROMPTS[i % 4]] * 2 for i in rows],
        "chosen_image": [png(right, 2 * i) for i in rows],
        "rejected_image": [png(wrong, 2 * i + 1) for i in rows],
        "kind": ["test"] * num,
    }
    _write(path, columns)


def write_labelled(path, *, num=4, right=0, wrong=2, seed=0):
    """Pictures, every other one of the channel `right` with label 1."""
    rows = range(seed, seed + num)
    columns = {
        "prompt": [PROMPTS[i % 4] for i in rows],
        "image": [png(wrong if i % 2 else right, i) for i in rows],
        "label": [1 - i % 2 for i in rows],
        "kind": ["test"] * num,
    }
    _write(path, columns)


def write_preferences(folder, *, num=4):
    """All files: alignment and fidelity as pairs, safety as labels."""
    for number, split in enumerate(("train", "validation")):
        options = {"num": num, "seed": 100 * number}
        write_pairs(folder / "alignment" / f"{split}.parquet", **options)
        write_pairs(folder / "fidelity" / f"{split}.parquet", right=2, wrong=0, **options)
        write_labelled(folder / "safety" / f"{split}.parquet", **options)
    for name in ("captions", "scenes", "samples", "predictions"):
        write_pairs(folder / "alignment" / f"heldout-{name}.parquet", num=num, seed=200)
    write_pairs(folder / "fidelity" / "heldout.parquet", right=2, wrong=0, num=num, seed=200)
    write_labelled(folder / "safety" / "heldout.parquet", num=num, seed=200)
    write_pairs(folder / "safety" / "heldout-pairs.parquet", num=num, seed=200)


def _write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
