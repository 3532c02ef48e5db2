"""The one reader of images: what a viewer shows, or one error that names the file."""

from __future__ import annotations

import ast
import base64
import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageChops
from transformers.image_utils import load_image

from fk_reward.image_files import UnreadableImageError, embedded_image, read_image
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files


def _noise(size=(12, 8), mode="RGB"):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze() if bands == 1 else pixels, mode=mode)


def _file(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_as_transformers_reads_it(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{kind.lower()}"
    _noise().save(path, kind, exif=exif)
    expected = load_image(str(path))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        assert ImageChops.difference(read_image(source), expected).getbbox() is None
    assert read_image(path).size == ((8, 12) if orientation > 4 else (12, 8))
    assert ImageChops.difference(read_image(read_image(path)), expected).getbbox() is None  # not turned twice


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (0, 255)).convert("PA"), (0, 0, 0)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("RGB", (2, 2), (1, 2, 3)).quantize(4), (1, 2, 3)),
    ],
)
def test_modes_and_transparency(image, color):
    before = image.copy()
    assert read_image(image).getcolors() == [(4, color)]
    assert image.mode == before.mode and image.tobytes() == before.tobytes()  # the caller's image is not changed


def test_transparent_entries_of_files():
    palette = _file(Image.new("RGB", (2, 2), "blue").quantize(2), transparency=0)
    keyed = _file(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))
    assert [read_image(content).getcolors() for content in (palette, keyed)] == [[(4, (255, 255, 255))]] * 2


def test_an_animation_counts_by_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = _file(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert read_image(content).getpixel((0, 0)) == (255, 0, 0)


def _sixteen_bits(kind):
    return _file(Image.fromarray(np.full((4, 4), 20000, np.uint16)), kind)


def _claims(width, height):
    """A PNG whose header says that it is huge."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_sixteen_bits("PNG"), "no agreed range"),
        (_sixteen_bits("TIFF"), "no agreed range"),
        (_file(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode 'F'"),
        (_file(Image.new("LAB", (4, 4)), "TIFF"), "mode 'LAB'"),
        (_claims(100_000, 100_000), "decompression bomb"),
        (_claims(10_000, 10_000), "10000 x 10000 pixels"),
        (_claims(0, 5), ""),
        (_file(_noise((64, 64)))[:3000], "truncated|cut|broken"),
        (_file(_noise((64, 64)), "JPEG")[:900], "truncated"),
        (b"", "no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no known format"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "g.png"
    path.write_bytes(content)
    for source, name in ((path, r"g\.png"), (content, f"image of {len(content)} bytes")):
        with pytest.raises(UnreadableImageError, match=rf"{name} cannot be read as an image: .*(?:{reason})"):
            read_image(source)


def test_no_warning_is_left_over_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImageError, match="cannot be read"):
            read_image(_claims(10_000, 10_000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "TGA"])
def test_damaged_files_raise_nothing_else(kind):
    rng = random.Random(0)  # noqa: S311 (not for secrets)
    whole = _file(_noise((16, 16)), kind)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(bytes(content[: rng.choice([len(content), len(content) // 2])])).mode == "RGB"
            except UnreadableImageError:
                pass


@pytest.mark.parametrize(
    "name", ["gone.png", "a" * 5000, "a\0b.png", "\ud83d.png", "gone\x1b[31m.png", ".", "/dev/null"]
)
def test_paths_that_are_no_files(tmp_path, name):
    with pytest.raises(UnreadableImageError, match="no such image file: ") as caught:
        read_image(os.path.join(tmp_path, name))
    assert len(str(caught.value)) < 450
    assert "\x1b" not in str(caught.value) and str(caught.value).encode()


def test_an_image_without_pixels():
    with pytest.raises(UnreadableImageError, match="images.3. cannot be read as an image: it has no pixels"):
        read_image(Image.new("RGB", (0, 5)), name="images[3]")


def test_strings_with_a_file_in_them():
    content = _file(_noise())
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for form in (
        text,
        wrapped,
        f"data:image/png;base64,{text}",
        f"DATA:image/png;name=a.png;BASE64,{text}",
        f"data:;base64,{text}",
    ):
        assert embedded_image(form) == content
    for kind in ("JPEG", "GIF", "WEBP"):
        assert embedded_image(base64.b64encode(_file(_noise(), kind)).decode()) == _file(_noise(), kind)


@pytest.mark.parametrize(
    "text", ["images/cat.png", "/9j/cat.jpg", "iVBORw0KGgo", "a" * 5000, "iVBORw0KGgo" + "é" * 100, "data.png"]
)
def test_other_strings_are_paths(text):
    assert embedded_image(text) is None


def test_a_data_uri_must_be_base64():
    with pytest.raises(UnreadableImageError, match="data URI without base64"):
        embedded_image("data:image/png;base64,§§§")


def test_nothing_else_opens_images():
    for path in python_files(*LIBRARY_FOLDERS):
        calls = (node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call))
        opens = any(ast.unparse(call.func) in ("Image.open", "PIL.Image.open") for call in calls)
        assert not opens or path.name == "image_files.py", f"{path} reads images past fk_reward/image_files.py"
