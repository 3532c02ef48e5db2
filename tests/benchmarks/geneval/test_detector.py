"""The detector on a tiny random Mask2Former in the hub's layout, against transformers' processor and model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fk_reward.benchmarks.geneval import detector as detector_module
from fk_reward.benchmarks.geneval.detector import Mask2FormerDetector
from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.prompts import OBJECT_NAMES
from tests.benchmarks.geneval.tiny_judge import COCO_NAMES, write_mask2former


def picture(seed, size=(120, 90)):
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture
def detector(folder):
    detector = Mask2FormerDetector.from_pretrained(folder, batch_size=3)
    detector.shorter_side, detector.longer_side = 96, 160
    return detector


def rows(objects):
    """Class, score, box and mask of all detections of a picture, by falling score."""
    found = [(name, d.score, d.box, d.mask) for name, group in objects.items() for d in group]
    return sorted(found, key=lambda row: -row[1])


def check_same(one, other):
    for first, second in zip(map(rows, one), map(rows, other), strict=True):
        assert [row[0] for row in first] == [row[0] for row in second]
        assert_close([row[1] for row in first], [row[1] for row in second], rtol=0, atol=1e-4)
        differing = [int((a[3] != b[3]).sum()) for a, b in zip(first, second, strict=True)]
        assert max(differing, default=0) <= 2  # pixels whose logit is 0 up to rounding


def transformers_rows(folder, images):
    """Class, score and mask by transformers' own processor and model in 384 x 384."""
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**processor(images, return_tensors="pt"))
    results = processor.post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(384, 384)] * len(images), return_binary_maps=True
    )
    for result in results:
        infos = zip(result["segments_info"], result["segmentation"], strict=True)
        found = [(OBJECT_NAMES[info["label_id"]], info["score"], None, mask.bool()) for info, mask in infos]
        yield sorted(found, key=lambda row: -row[1])


def test_equals_transformers_where_no_size_changes(folder, detector):
    images = [picture(seed, (384, 384)) for seed in range(2)]
    detector.shorter_side = detector.longer_side = 384
    found = detector(images)
    assert all(len(rows(objects)) > 2 for objects in found)
    for ours, theirs in zip(map(rows, found), transformers_rows(folder, images), strict=True):
        assert [row[0] for row in ours] == [row[0] for row in theirs]
        assert_close([row[1] for row in ours], [row[1] for row in theirs], rtol=0, atol=1e-4)
        assert all((a[3] != b[3]).sum() <= 2 for a, b in zip(ours, theirs, strict=True))


def test_input_equals_transformers_processor(folder, detector):
    from transformers import Mask2FormerImageProcessorPil

    seen = []
    detector.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    image = picture(0, (150, 150))
    detector([image])
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder, size={"height": 96, "width": 96})
    wanted = processor([image], return_tensors="pt")["pixel_values"]
    assert_close(seen[0]["pixel_values"], wanted, rtol=0, atol=1.3 / 255 / 0.224)


def test_batches_are_as_singles(detector):
    images = [picture(seed, size) for seed, size in enumerate([(120, 90), (80, 80), (120, 90), (80, 80), (120, 90)])]
    together = detector(images)
    assert all(rows(objects) for objects in together)
    check_same(together, [detector([image])[0] for image in images])
    with pytest.raises(AssertionError):
        check_same(together, [detector([image])[0] for image in reversed(images)])


def test_only_batch_size_pictures_at_a_time(detector):
    sizes = []
    detector.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    detector([picture(seed) for seed in range(7)])
    assert sizes == [3, 3, 1]


def test_names_are_genevals(detector, monkeypatch):
    cow, mouse = Detection((0, 0, 1, 1), 0.9), Detection((0, 0, 1, 1), 0.8)
    monkeypatch.setattr(detector_module, "find_instances", lambda *_, **__: [(19, cow), (64, mouse), (19, mouse)])
    assert detector([picture(0)]) == [{"cow": [cow, mouse], "computer mouse": [mouse]}]


def test_masks_have_the_size_of_the_picture(detector):
    (objects,) = detector([picture(0, (130, 70))])
    assert {mask.shape for _, _, _, mask in rows(objects)} == {(70, 130)}
    assert {mask.dtype for _, _, _, mask in rows(objects)} == {torch.bool}


def test_half_precision_loads(folder):
    detector = Mask2FormerDetector.from_pretrained(folder, torch_dtype=torch.bfloat16)
    detector.shorter_side = 64
    assert detector.model.dtype == torch.bfloat16
    detector([picture(0)])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (COCO_NAMES[::-1], "Class 0 of the detector should be COCO's 'person', it is 'toothbrush'"),
        (COCO_NAMES[:79], "80 classes of COCO, it has 79"),
        ([*COCO_NAMES[:64], "house", *COCO_NAMES[65:]], "'computer mouse', it is 'house'"),
    ],
)
def test_other_classes_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        Mask2FormerDetector.from_pretrained(write_mask2former(tmp_path, names=names))


def test_genevals_own_names_pass(tmp_path):
    Mask2FormerDetector.from_pretrained(write_mask2former(tmp_path, names=OBJECT_NAMES))


def test_a_batch_holds_a_picture(folder):
    with pytest.raises(ValueError, match="batch_size should be at least 1"):
        Mask2FormerDetector.from_pretrained(folder, batch_size=0)
