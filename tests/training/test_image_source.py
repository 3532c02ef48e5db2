"""Images of any origin are the same picture; what cannot be read says so."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.training import ImageSource, UnreadableImageError
from tests.tiny.image_files import file_bytes, noise


def test_path_bytes_and_picture_agree(tmp_path):
    noise().save(tmp_path / "a.png")
    expected = torch.from_numpy(np.array(noise())).permute(2, 0, 1) / 255
    values = ["a.png", Path("a.png"), file_bytes(noise()), noise(), {"bytes": file_bytes(noise()), "path": "gone.png"}]
    values += [{"bytes": None, "path": "a.png"}, ImageSource(tmp_path / "a.png")]
    sources = [ImageSource.of(value, root=tmp_path) for value in values]
    for source in sources:
        torch.testing.assert_close(source.load(), expected, rtol=0, atol=0)
    assert len({source.digest() for source in sources}) == 1
    assert ImageSource(noise(1)).digest() != sources[0].digest()


def test_shape_counts_in_the_digest():
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert ImageSource(wide).digest() != ImageSource(high).digest()


def test_transparency_is_laid_over_white():
    assert ImageSource(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).load().min() == 1


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_files(tmp_path, format):
    whole = file_bytes(noise(size=(64, 64)), format)
    assert ImageSource(whole).load().shape == (3, 64, 64)
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"no picture"):
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(UnreadableImageError, match="cut cannot be read as an image"):
            ImageSource(tmp_path / "cut").load()


def test_other_unreadable_images(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such image file: .*gone.png"):
        ImageSource(tmp_path / "gone.png").load()
    with pytest.raises(UnreadableImageError, match="no such image file"):
        ImageSource(tmp_path).load()
    with pytest.raises(UnreadableImageError, match="image of 5 bytes"):
        ImageSource(b"hello").load()
    with pytest.raises(UnreadableImageError, match="no agreed range"):
        ImageSource(Image.new("F", (2, 2))).load()


def test_a_decompression_bomb_is_an_error_and_no_crash(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings(), pytest.raises(UnreadableImageError, match="decompression bomb"):
        ImageSource(file_bytes(noise())).load()


@pytest.mark.parametrize("value", [None, 3, ["a.png"], {"url": "x"}])
def test_wrong_types(value):
    with pytest.raises(TypeError, match="expected an image"):
        ImageSource.of(value)


@pytest.mark.parametrize("value", ["", " ", b""])
def test_empty_values(value):
    with pytest.raises(ValueError, match="empty"):
        ImageSource.of(value)


def test_absolute_paths_stay(tmp_path):
    assert ImageSource.of(str(tmp_path / "a.png"), root=Path("elsewhere")).content == tmp_path / "a.png"


def test_it_travels_to_workers(tmp_path):
    noise().save(tmp_path / "a.png")
    for content in (tmp_path / "a.png", file_bytes(noise()), noise()):
        assert pickle.loads(pickle.dumps(ImageSource(content))).digest() == ImageSource(noise()).digest()  # noqa: S301


def test_the_content_is_checked():
    with pytest.raises(TypeError, match="got str"):
        ImageSource("a.png")
