"""An image of a preference row that is read when it is needed: a file, bytes or a PIL image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fk_reward.image_files import UnreadableImageError, embedded_image, read_image, source_name
from fk_reward.rewards.inputs import group_by_size

__all__ = ["ImageSource", "UnreadableImageError"]


@dataclass(frozen=True, eq=False)  # == of PIL images compares pixels; `key` and `digest` say what is compared
class ImageSource:
    """Where an image comes from. A path is cheap to keep and to send to the workers of a data loader.

    Attributes:
        content: path of a file, the bytes of one, or a PIL image.

    Raises:
        TypeError: for anything else.

    Example:
        >>> ImageSource(Image.new("RGB", (4, 2), "red")).load()[:, 0, 0]
        tensor([1., 0., 0.])
    """

    content: Path | bytes | Image.Image

    def __post_init__(self) -> None:
        if not isinstance(self.content, (Path, bytes, Image.Image)):
            raise TypeError(f"An image is a Path, bytes or a PIL image, got {type(self.content).__name__}.")

    @classmethod
    def of(cls, value: Any, *, root: Path | None = None) -> ImageSource:
        """Take an image in any form that a row of data may hold it in.

        Args:
            value: a path, a file in base64 (a data URI, or the bare base64 of a PNG, JPEG, GIF or WebP file), the
                bytes of one, a PIL image, an array (H, W, 3) or (H, W) of uint8, or the mapping {"bytes": ...,
                "path": ...} of an image column of `datasets`, whose bytes are used where there are any.
            root: folder that relative paths are relative to; None for the working directory.

        Raises:
            TypeError: for anything else.
            ValueError: for an empty path, empty bytes, an address, or a data URI without base64.

        Example:
            >>> ImageSource.of("a/b.png", root=Path("images")).content.as_posix()
            'images/a/b.png'
        """
        if isinstance(value, ImageSource):
            return value
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (bytearray, memoryview)):
            value = bytes(value)
        if isinstance(value, (str, bytes)) and not value.strip():
            raise ValueError("the image is empty: expected a path or the bytes of a file.")
        if isinstance(value, str):
            return cls._of_text(str(value), root)
        if isinstance(value, Path):
            return cls((root or Path()) / value)
        if isinstance(value, (bytes, Image.Image)):
            return cls(value)
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            return cls(Image.fromarray(value))  # a TypeError for other shapes
        raise TypeError(f"expected an image (a path, bytes or a PIL image), got {type(value).__name__}.")

    @classmethod
    def _of_text(cls, text: str, root: Path | None) -> ImageSource:
        if text.lower().startswith(("http://", "https://")):
            raise ValueError(f"images are not fetched from addresses: download {source_name(text)} and give its path.")
        content = embedded_image(text)
        return cls((root or Path()) / text if content is None else content)

    def load(self, *, keep_uint8: bool = False) -> Tensor:
        """Decode the image.

        Args:
            keep_uint8: do not divide by 255, so that what reads the image can resize it as PIL does.

        Returns:
            (3, H, W) float32 in [0, 1], or uint8, as `read_image` reads it: upright, on white where it is transparent.

        Raises:
            UnreadableImageError: a ValueError; the message names the file.

        H: height, W: width.
        """
        return group_by_size(read_image(self.content), keep_uint8=keep_uint8)[0].images[0]

    def digest(self) -> str:
        """SHA-256 of the decoded pixels: equal exactly for equal images, whatever the file.

        Raises:
            UnreadableImageError: as `load`.

        Example:
            >>> red, also_red = (ImageSource(Image.new(mode, (4, 2), "red")) for mode in ("RGB", "RGBA"))
            >>> red.digest() == also_red.digest()
            True
        """
        pixels = self.load()
        # With the shape: 2 x 8 and 4 x 4 pixels of one colour have the same bytes.
        return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()

    @property
    def key(self) -> Path | bytes | int:
        """Equal for two sources of the same file or bytes; PIL images are compared by identity."""
        return id(self.content) if isinstance(self.content, Image.Image) else self.content

    def __str__(self) -> str:
        return source_name(self.content)
