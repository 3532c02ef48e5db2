"""The classifier of colours on a tiny random CLIP in the hub's layout, against transformers' model and processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fk_reward.benchmarks.geneval import colors as colors_module
from fk_reward.benchmarks.geneval.colors import CLIPColorClassifier, object_crops
from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.prompts import COLORS
from tests.benchmarks.geneval.tiny_judge import write_clip
from tests.tiny.imagereward_reference import pil_pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def color_of(folder):
    return CLIPColorClassifier.from_pretrained(folder, batch_size=4)


@pytest.fixture(scope="module")
def image():
    """Random rectangles of full colours, so that crops differ."""
    coarse = np.random.default_rng(0).choice([0, 255], (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def detections(image):
    """Objects of several shapes; every third has no mask."""
    rng = np.random.default_rng(1)
    found = []
    for index in range(24):
        x0, y0 = int(rng.integers(0, 120)), int(rng.integers(0, 80))
        x1, y1 = x0 + int(rng.integers(8, 40)), y0 + int(rng.integers(8, 40))
        mask = torch.zeros(120, 160, dtype=torch.bool)
        mask[y0:y1, x0:x1] = torch.from_numpy(rng.random((y1 - y0, x1 - x0)) < rng.random())
        found.append(Detection((x0, y0, x1, y1), 0.9, mask if index % 3 else None))
    return found


# Crops


def check_crop(crop, image, detection):
    """Pixel by pixel: the image where the mask is true, #999 where it is not."""
    x0, y0, x1, y1 = detection.box
    pixels = torch.from_numpy(np.array(image))
    grey = torch.tensor([0x99] * 3, dtype=torch.uint8).expand_as(pixels)
    wanted = pixels if detection.mask is None else torch.where(detection.mask[..., None], pixels, grey)
    assert torch.equal(torch.from_numpy(np.array(crop)), wanted[y0:y1, x0:x1])


def test_objects_stand_on_grey(image, detections):
    for crop, detection in zip(object_crops(image, detections), detections, strict=True):
        check_crop(crop, image, detection)


def test_another_background_is_noticed(monkeypatch, image, detections):
    monkeypatch.setattr(colors_module, "BACKGROUND", "#989999")
    with pytest.raises(AssertionError):
        test_objects_stand_on_grey(image, detections)


def test_sides_are_rounded(image):
    (crop,) = object_crops(image, [Detection((9.6, 0.4, 30.4, 20.6), 0.9)])
    assert crop.size == (20, 21)


def test_a_mask_of_another_size_is_refused(image):
    with pytest.raises(ValueError, match=r"mask of \(160, 120\) does not fit an image of \(120, 160\)"):
        object_crops(image, [Detection((0, 0, 5, 5), 0.9, torch.ones(160, 120, dtype=torch.bool))])


# Colours


def transformers_colors(folder, image, name, detections):
    """Names by torchvision's transforms on PIL images and transformers' model, object by object."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, size = CLIPTokenizer.from_pretrained(folder), model.config.vision_config.image_size

    settings = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))

    def text(sentence):
        return functional.normalize(model.get_text_features(**tokenizer(sentence, return_tensors="pt")).pooler_output)

    names = []
    with torch.no_grad():
        means = [
            text(f"a photo of a {color} {name}")
            + text(f"a photo of a {color}-colored {name}")
            + text(f"a photo of a {color} object")
            for color in COLORS
        ]
        for crop in object_crops(image, detections):
            pixels = (pil_pixels(crop, size) - mean) / std
            image = model.get_image_features(pixels[None]).pooler_output
            cosines = [torch.cosine_similarity(image, mean).item() for mean in means]
            names.append(COLORS[int(np.argmax(cosines))])
    return names


def check_equals_transformers(color_of, folder, image, detections):
    for name in ("cow", "computer keyboard"):
        ours = color_of(image, name, detections)
        theirs = transformers_colors(folder, image, name, detections)
        assert len(set(theirs)) > 1
        assert ours == theirs


def test_equals_transformers(color_of, folder, image, detections):
    check_equals_transformers(color_of, folder, image, detections)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEMPLATES", ("a photo of a {color} object",)),
        ("TEMPLATES", ("a {color} {name}", "a {color}-colored {name}", "a {color} object")),
        ("BACKGROUND", "#f0f"),
    ],
)
def test_wrong_classifiers_are_noticed(monkeypatch, color_of, folder, image, detections, name, value):
    theirs = {name: transformers_colors(folder, image, name, detections) for name in ("cow", "computer keyboard")}
    monkeypatch.setattr(colors_module, name, value)
    ours = {name: color_of(image, name, detections) for name in theirs}
    assert ours != theirs


def test_batches_are_as_singles(color_of, image, detections):
    together = color_of(image, "cow", detections)
    assert together == [color_of(image, "cow", [detection])[0] for detection in detections]


def test_sentences_are_read_once_for_a_class(color_of, image, detections):
    read = []
    color_of.model.text_model.register_forward_hook(lambda *_: read.append(1))
    for name in ("cow", "dog", "cow", "cow", "dog"):
        color_of(image, name, detections[:2])
    assert len(read) == 2


def test_only_batch_size_objects_at_a_time(color_of, image, detections):
    sizes = []
    color_of.model.vision_model.register_forward_hook(lambda module, args, out: sizes.append(len(out.pooler_output)))
    color_of(image, "cow", detections[:9])
    assert sizes == [4, 4, 1]


def test_no_objects_have_no_colors(color_of, image):
    assert color_of(image, "cow", []) == []


def test_a_batch_holds_an_object(folder):
    with pytest.raises(ValueError, match="batch_size should be at least 1"):
        CLIPColorClassifier.from_pretrained(folder, batch_size=0)
