"""Tiny random-weight backbones in the hub's layout, and files of preferences."""

from __future__ import annotations

import json

import pytest

from tests.tiny.image_files import write_images
from tests.tiny.llava_reward import WRITERS


@pytest.fixture(scope="session")
def tiny_phi(tmp_path_factory):
    return WRITERS["phi3_v"](tmp_path_factory.mktemp("phi3_v"))


@pytest.fixture(scope="session", params=WRITERS)
def tiny_backbone(request, tmp_path_factory):
    """Name and folder of each of the three."""
    return request.param, WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def image_folder(tmp_path):
    write_images(tmp_path, "img/0.png", "img/1.png", "img/2.png")
    return tmp_path


@pytest.fixture
def write_rows(image_folder):
    """Write rows as JSON or JSON lines under a name that tells nothing."""

    def write(rows, *, lines=False, name="data.txt"):
        text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows, indent=1)
        (image_folder / name).write_text(text)
        return image_folder / name

    return write
