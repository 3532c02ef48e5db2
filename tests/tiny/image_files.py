"""Small images, in memory and on disk."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(seed=0, size=(12, 8)):
    """An image that compresses badly, so that cutting its file loses pixels."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def file_bytes(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def write_images(folder, *names):
    """A different image for each name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed).save(folder / name)
