"""An image of a preference row that is read when it is needed: a file, bytes or a PIL image."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fk_reward.rewards.inputs import group_by_size

_DECODING_ERRORS = (OSError, ValueError, TypeError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises on files that are absent, no image, truncated, broken, of a mode without a range, or huge."""


class UnreadableImageError(ValueError):
    """An image that is absent, truncated, of an unknown format, or of a mode without an agreed range."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Where an image comes from. Light to keep and to pickle while it is a path.

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
            value: a path, bytes, a PIL image, or the mapping {"bytes": ..., "path": ...} of an image column of
                `datasets`, whose bytes are used where there are any.
            root: folder that relative paths are relative to; None for the working directory.

        Raises:
            TypeError: for anything else.
            ValueError: for an empty path or empty bytes.

        Example:
            >>> ImageSource.of("a/b.png", root=Path("pictures")).content.as_posix()
            'pictures/a/b.png'
        """
        if isinstance(value, ImageSource):
            return value
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, (str, Path, bytes)) and not str(value).strip() or value == b"":
            raise ValueError("the image is empty: expected a path or the bytes of a file.")
        if isinstance(value, (str, Path)):
            return cls((root or Path()) / value)
        if isinstance(value, (bytes, Image.Image)):
            return cls(value)
        raise TypeError(f"expected an image (a path, bytes or a PIL image), got {type(value).__name__}.")

    def load(self) -> Tensor:
        """Decode the whole image.

        Returns:
            (3, H, W) float32 in [0, 1]; transparent pictures are laid over white, as rewards do.

        Raises:
            UnreadableImageError: a ValueError; the message names the file.

        H: height, W: width.
        """
        if isinstance(self.content, Path) and not self.content.is_file():
            raise UnreadableImageError(f"no such image file: {self}")
        try:
            return group_by_size(self._decoded())[0].images[0]
        except _DECODING_ERRORS as error:
            raise UnreadableImageError(f"{self} cannot be read as an image: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the decoded pixels: equal exactly for equal pictures, whatever the file.

        Raises:
            UnreadableImageError: as `load`.

        Example:
            >>> red, also_red = (ImageSource(Image.new(mode, (4, 2), "red")) for mode in ("RGB", "RGBA"))
            >>> red.digest() == also_red.digest()
            True
        """
        pixels = self.load()
        return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()

    @property
    def key(self) -> Path | bytes | int:
        """Equal for two sources of the same file or bytes; a PIL image is known by its identity."""
        return id(self.content) if isinstance(self.content, Image.Image) else self.content

    def __str__(self) -> str:
        if isinstance(self.content, Path):
            return str(self.content)
        return f"image of {len(self.content)} bytes" if isinstance(self.content, bytes) else "PIL image"

    def _decoded(self) -> Image.Image:
        if isinstance(self.content, Image.Image):
            self.content.load()
            return self.content
        with Image.open(io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content) as image:
            image.load()
            return image.copy()
