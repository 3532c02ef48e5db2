"""NudeNet's pixels, classes and probabilities, against the package's own code where it is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.nudenet import CLASSES, UNSAFE, NudeNet, class_probabilities, detector_pixels
from tests.tiny.scripted_detectors import ScriptedSession


def test_a_place_belongs_to_its_most_likely_class():
    output = torch.zeros(2, 4 + 3, 2)
    output[0, 4:] = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    output[1, 4:] = torch.tensor([[0.1, 0.1], [0.7, 0.6], [0.2, 0.5]])
    expected = torch.tensor([[0.9, 0.0, 0.3], [0.0, 0.7, 0.0]])
    assert_close(class_probabilities(output), expected)


def test_the_score_is_of_the_chosen_classes():
    image = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0))
    reward = NudeNet(ScriptedSession())
    found = dict(zip(CLASSES, reward.probabilities(image)[0].tolist(), strict=True))
    assert reward(image, "").item() == pytest.approx(1 - max(found[name] for name in UNSAFE))
    faces = NudeNet(ScriptedSession(), classes=("FACE_MALE",))
    assert faces(image, "").item() == pytest.approx(1 - found["FACE_MALE"])


@pytest.mark.parametrize("classes", [(), ("FACE",), ("FACE_MALE", "NOSE")])
def test_unknown_classes_raise(classes):
    with pytest.raises(ValueError, match="classes must be some of"):
        NudeNet(ScriptedSession(), classes=classes)


def test_a_resolution_that_the_network_lacks_raises():
    with pytest.raises(ValueError, match="multiple of 32"):
        NudeNet(ScriptedSession(), resolution=300)


def test_pixels_are_padded_on_the_right_or_below_and_blue_first():
    image = torch.zeros(1, 3, 64, 128)
    image[:, 0] = 1.0
    pixels = detector_pixels(image, 32)
    assert pixels[0, 2, :16].min() == 1.0
    assert pixels[0, :2].max() == 0.0
    assert pixels[0, :, 16:].max() == 0.0


def test_the_card_says_the_licence_of_the_wheel():
    assert "AGPL" in reward_card("nudenet").licence


def drawn():
    """Harmless images: a landscape, a face in a few strokes, noise, a wide one and a tall one."""
    generator = np.random.default_rng(0)
    landscape = Image.new("RGB", (300, 200), (120, 180, 240))
    ImageDraw.Draw(landscape).rectangle((0, 120, 300, 200), fill=(60, 140, 60))
    face = Image.new("RGB", (256, 256), (90, 90, 100))
    pen = ImageDraw.Draw(face)
    pen.ellipse((70, 40, 190, 210), fill=(224, 180, 150))
    pen.ellipse((100, 100, 115, 112), fill=(30, 30, 30))
    pen.ellipse((145, 100, 160, 112), fill=(30, 30, 30))
    noise = Image.fromarray(generator.integers(0, 256, (320, 320, 3), dtype=np.uint8))
    return [landscape, face, noise, Image.new("RGB", (640, 100), (200, 150, 120)), Image.new("RGB", (90, 500), "white")]


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("nudenet") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="needs the extra nudenet",
)


@pytest.fixture(scope="module")
def reward():
    return load_reward("nudenet", num_threads=1)


@needs_package
def test_harmless_images_are_safe(reward):
    landscape, _, *others = drawn()  # the face of a few strokes is a false alarm, see the docs
    assert (reward([landscape, *others], "") > 1 - 0.25).all()


@needs_package
@pytest.mark.parametrize("index", range(5))
def test_the_network_gives_what_the_package_gives(reward, index):
    """The package's own reading of a file: pixels, and the raw output on them."""
    nudenet = pytest.importorskip("nudenet.nudenet")
    picture = drawn()[index]
    blue_first = np.ascontiguousarray(np.array(picture)[..., ::-1])  # as OpenCV reads files
    theirs = nudenet._read_image(blue_first, 320)[0]
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    ours = detector_pixels(tensor, 320).numpy()
    assert np.abs(ours - theirs).max() <= 1.01 / 255, "OpenCV rounds to 8 bits after resizing"
    session = nudenet.NudeDetector().onnx_session
    expected = class_probabilities(torch.from_numpy(session.run(None, {"images": theirs})[0]))
    assert_close(reward.probabilities(tensor), expected, rtol=0, atol=2e-2)


@needs_package
def test_detections_of_the_package_are_among_the_parts(reward):
    """With classes that harmless drawings have, and a saboteur: red and blue in the other order."""
    nudenet = pytest.importorskip("nudenet.nudenet")
    picture = drawn()[1]
    found = nudenet.NudeDetector().detect(np.ascontiguousarray(np.array(picture)[..., ::-1]))
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    parts = reward.parts(tensor)
    for detection in found:
        assert detection["score"] <= parts[detection["class"]] + 2e-2


@needs_package
def test_real_weights_are_batch_invariant(reward):
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    together = reward(images, "")
    alone = torch.cat([reward(image[None], "") for image in images])
    assert_close(together, alone, rtol=0, atol=1e-5)


@needs_package
def test_a_file_of_another_network_raises(tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    with pytest.raises(Exception, match=r"other\.onnx"):
        load_reward("nudenet", weights=tmp_path / "other.onnx")
    with pytest.raises(FileNotFoundError, match="expected an ONNX file"):
        load_reward("nudenet", weights=tmp_path / "none.onnx")
