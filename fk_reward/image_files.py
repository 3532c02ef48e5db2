"""The one reader of images: files, bytes and PIL images of any kind become upright 8-bit RGB, or one error.

"The image" is what a viewer shows: turned as its EXIF block says, on white where it is transparent, of an animation the
first frame. `datasets` and transformers turn images in the same way. Colour profiles are not applied, as nowhere in
this field.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from fk_reward.text import shortened, visible

# Modes that convert to RGB without a choice of range; "I;16", "I" and "F" have none that all programs share.
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_TRANSPARENT_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_SHOWN = 300
"""Characters of a path that a message shows."""

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*?;base64,", re.IGNORECASE | re.ASCII)
_BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""PNG, JPEG, GIF and WebP files begin like this in base64."""
_SHORTEST_BASE64 = 64
"""Characters: no file of these formats is shorter, and a path of this length has a dot or a dash."""


class UnreadableImageError(ValueError):
    """An image is missing, damaged, too large, not an image, or of a mode without an agreed range."""


def read_image(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
    """Read an image to its end, as a viewer shows it.

    Args:
        source: path of a file, the content of one, or a PIL image.
        name: what the message calls it; None for the path, or the kind of source.

    Returns:
        The image in mode RGB: turned upright as its EXIF block says, laid over white where it is transparent, the first
        frame of an animation. A PIL image is not changed.

    Raises:
        UnreadableImageError: a ValueError that names the image: no such file, not an image, truncated or damaged,
            without pixels, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or a mode with more than 8 bits, which has no
            agreed range.

    Example:
        >>> read_image(Image.new("RGBA", (4, 2), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
        >>> read_image("nothing.png")
        Traceback (most recent call last):
        fk_reward.image_files.UnreadableImageError: no such image file: nothing.png
    """
    called = name or source_name(source)
    if isinstance(source, (str, Path)):
        _require_file(Path(source), called)
    with _named(called):
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        with _opened(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _upright_rgb(image)


def check_image(path: str | Path) -> None:
    """Raise for a file that is missing or is no image, from its header alone: for thousands of files before the work.

    Raises:
        UnreadableImageError: as `read_image`, but not for what only its pixels show.

    Example:
        >>> check_image("nothing.png")
        Traceback (most recent call last):
        fk_reward.image_files.UnreadableImageError: no such image file: nothing.png
    """
    called = source_name(path)
    _require_file(Path(path), called)
    with _named(called), _opened(path):
        return


def embedded_image(text: str) -> bytes | None:
    r"""Decode a file that a string holds in base64, as chat-style data sets do; None for any other string.

    Args:
        text: a data URI ("data:image/png;base64,..."), or the bare base64 of a PNG, JPEG, GIF or WebP file.

    Raises:
        UnreadableImageError: a data URI that is not base64.

    Example:
        >>> embedded_image("data:image/png;base64,iVBORw0K"), embedded_image("images/cat.png")
        (b'\x89PNG\r\n', None)
    """
    found = _DATA_URI.match(text)
    if found is None and not (text.startswith(_BASE64_BEGINNINGS) and len(text) >= _SHORTEST_BASE64):
        return None
    try:
        return base64.b64decode("".join(text[found.end() if found else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters outside ASCII
        if found is None:
            return None
        raise UnreadableImageError(f"{source_name(text)} is a data URI without base64: {error}") from error


def source_name(source: str | Path | bytes | Image.Image) -> str:
    """What messages call an image: its path, "image of 120 bytes" or "PIL image"."""
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return "PIL image"
    return shortened(visible(str(source)), _SHOWN)


def _require_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UnreadableImageError(f"no such image file: {name}") from error
    except (OSError, ValueError) as error:  # a name that is too long, or has null bytes or half characters
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"no such image file: {name} ({reason})") from error
    if not stat.S_ISREG(mode):  # devices and pipes never end
        raise UnreadableImageError(f"no such image file: {name} is {'a folder' if stat.S_ISDIR(mode) else 'no file'}")


@contextmanager
def _opened(file: io.BytesIO | str | Path) -> Iterator[Image.Image]:
    with Image.open(file) as image:
        limit = Image.MAX_IMAGE_PIXELS  # PIL itself raises at twice the limit only, and warns below
        if limit is not None and image.width * image.height > limit:
            raise UnreadableImageError(
                f"it has {image.width} x {image.height} pixels, more than the {limit:,} of PIL.Image.MAX_IMAGE_PIXELS, "
                "which protects from decompression bombs; raise that for images which you trust"
            )
        yield image


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise one error for all that PIL raises, which is undocumented: each decoder has exceptions of its own."""
    try:
        yield
    except MemoryError:  # about this machine, not about the image
        raise
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{name} cannot be read as an image: {error}") from error
    except UnidentifiedImageError as error:  # whose own words are about the path, or the address of a buffer
        raise UnreadableImageError(f"{name} cannot be read as an image: it is in no known format") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"{name} cannot be read as an image: {reason}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _EIGHT_BIT_MODES:
        raise UnreadableImageError(
            f"mode {image.mode!r} has no agreed range (depth maps and masks are kept in such); "
            "save it with 8 bits, or pass an array of floats in [0, 1]"
        )
    if 0 in image.size:
        raise UnreadableImageError(f"it has no pixels, its size is {image.width} x {image.height}")
    image.load()  # `Image.open` reads the header only: a truncated file raises here
    upright = ImageOps.exif_transpose(image)
    # Palettes and RGB files may declare one colour transparent, without an alpha channel.
    if upright.mode in _TRANSPARENT_MODES or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")
