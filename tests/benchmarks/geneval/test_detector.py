"""The detector on a tiny random Mask2Former, and reading its output, against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.testing import assert_close

from fk_reward.benchmarks.geneval import detector as detector_module
from fk_reward.benchmarks.geneval import detector as frames
from fk_reward.benchmarks.geneval.detector import Frame, Mask2FormerDetector, find_instances
from fk_reward.benchmarks.geneval.judge import Detection
from fk_reward.benchmarks.geneval.prompts import OBJECT_NAMES
from tests.benchmarks.geneval.tiny_judge import COCO_NAMES, write_mask2former

SQUARE = Frame((384, 384), (384, 384))
"""The resolution in which transformers reads all masks."""


def random_output(seed, *, num_queries=24, num_classes=80):
    """Logits of queries that are sure of a class and of a few blobs, as those of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    classes = 4 * torch.randn(num_queries, num_classes + 1, generator=generator)
    blobs = torch.randn(1, num_queries, 5, 5, generator=generator) - 0.5
    return classes, 8 * functional.interpolate(blobs, (96, 96), mode="bilinear")[0]


def transformers_instances(classes, masks, size):
    """Class, score and mask of each object above 0.3, by transformers' processor, by falling score."""
    from transformers import Mask2FormerImageProcessorPil

    output = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (result,) = Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[size], return_binary_maps=True
    )
    infos = zip(result["segments_info"], result["segmentation"], strict=True)
    rows = [(info["label_id"], info["score"], mask.bool()) for info, mask in infos]
    return sorted(rows, key=lambda row: -row[1])


def our_instances(classes, masks, frame):
    rows = [(label, d.score, d.mask) for label, d in find_instances(classes, masks, frame)]
    return sorted(rows, key=lambda row: -row[1])


def check_equal(ours, theirs):
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    assert_close([row[1] for row in ours], [row[1] for row in theirs], rtol=0, atol=2e-6)
    assert all(torch.equal(our, their) for (_, _, our), (_, _, their) in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers(seed):
    classes, masks = random_output(seed)
    theirs = transformers_instances(classes, masks, (384, 384))
    assert len(theirs) > 5
    check_equal(our_instances(classes, masks, SQUARE), theirs)


def test_a_score_that_does_not_mind_the_mask_is_noticed():
    classes, masks = random_output(0)
    theirs = transformers_instances(classes, masks, (384, 384))
    with pytest.raises(AssertionError):
        check_equal(our_instances(classes, 20 * masks, SQUARE), theirs)


def test_a_wrong_frame_is_noticed():
    classes, masks = random_output(0)
    theirs = transformers_instances(classes, masks, (384, 384))
    with pytest.raises(AssertionError):
        check_equal(our_instances(classes, masks, Frame((384, 384), (384, 352))), theirs)


def test_nearly_equals_transformers_in_other_sizes():
    classes, masks = random_output(1)
    theirs = transformers_instances(classes, masks, (512, 512))
    ours = our_instances(classes, masks, Frame.of((512, 512)))
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    assert_close([row[1] for row in ours], [row[1] for row in theirs], rtol=0, atol=0.01)
    for (_, _, our), (_, _, their) in zip(ours, theirs, strict=True):
        assert (our & their).sum() / (our | their).sum() > 0.97


def test_boxes_just_hold_their_masks():
    classes, masks = random_output(2)
    found = [detection for _, detection in find_instances(classes, masks, Frame((50, 80), (500, 800)))]
    for detection in found:
        x0, y0, x1, y1 = map(int, detection.box)
        inside = detection.mask[y0:y1, x0:x1]
        assert detection.mask.shape == (50, 80)
        assert inside.sum() == detection.mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert len({detection.box for detection in found}) > 3


def test_only_surer_objects_are_made():
    classes, masks = random_output(0)
    scores = sorted(detection.score for _, detection in find_instances(classes, masks, SQUARE, min_score=0.0))
    assert len(scores) > 10
    middle = scores[len(scores) // 2]
    kept = sorted(detection.score for _, detection in find_instances(classes, masks, SQUARE, min_score=middle))
    assert kept == [score for score in scores if score > middle]


def test_empty_masks_and_no_objects():
    classes, masks = random_output(0)
    assert find_instances(classes, -masks.abs() - 0.1, SQUARE) == []
    assert find_instances(torch.zeros(3, 81), masks[:3], SQUARE) == []
    nothing = torch.zeros(3, 81)
    nothing[:, -1] = 20
    assert find_instances(nothing, masks[:3], SQUARE) == []


def test_a_query_can_be_two_classes():
    classes = torch.full((2, 81), -9.0)
    classes[0, [3, 5]] = 9.0
    classes[1, 80] = 9.0
    masks = torch.ones(2, 96, 96)
    assert sorted(label for label, _ in find_instances(classes, masks, SQUARE)) == [3, 5]
    theirs = [row[0] for row in transformers_instances(classes, 9 * masks, (384, 384))]
    assert sorted(theirs) == [3, 5]


# Sizes


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),  # COCO's usual size, as mmdetection's logs have it
        ((640, 480), (1067, 800), (1088, 800)),
        ((512, 1024), (667, 1333), (672, 1344)),
        ((100, 900), (148, 1333), (160, 1344)),
    ],
)
def test_sizes(image, resized, padded):
    assert (Frame.of(image).resized, Frame.of(image).padded) == (resized, padded)


def ramp(padded, axis, *, stride=4):
    """Logits that are the coordinate, in pixels of the input, of the middle of their cell."""
    height, width = (side // stride for side in padded)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows, columns)[axis][None] + 0.5) * stride


def check_restores(frame):
    """A ramp is linear, so that bilinear interpolation must give each pixel its own coordinate in the input."""
    for axis in (0, 1):
        scale = frame.resized[axis] / frame.image[axis]
        values = frame.restore(ramp(frame.padded, axis))[0].movedim(axis, 0)[5:-5]
        wanted = (torch.arange(frame.image[axis]) + 0.5)[5:-5, None] * scale
        assert_close(values, wanted.expand_as(values), rtol=0, atol=0.02)


@pytest.mark.parametrize("image", [(60, 100), (100, 60), (90, 90), (300, 500)])
def test_masks_come_back_to_their_place(image):
    frame = Frame.of(image, shorter_side=150, longer_side=230)
    assert frame.padded != frame.resized
    check_restores(frame)


def test_padding_that_stays_is_noticed(monkeypatch):
    frame = Frame.of((60, 100), shorter_side=150, longer_side=230)
    monkeypatch.setattr(frames, "DIVISOR", 1)  # the mask is taken for one of the image without its padding
    logits = [ramp((160, 256), axis) for axis in (0, 1)]
    restored = frame.restore(logits[1])[0, 30, 5:-5]
    wanted = (torch.arange(100) + 0.5)[5:-5] * frame.resized[1] / 100
    with pytest.raises(AssertionError):
        assert_close(restored, wanted, rtol=0, atol=0.02)


def test_pads_with_zeros_at_the_right_and_below():
    frame = Frame((10, 20), (40, 80))
    padded = frame.pad(torch.ones(2, 3, 40, 80))
    assert padded.shape == (2, 3, 64, 96)
    assert padded[..., :40, :80].min() == 1
    assert padded.sum() == 2 * 3 * 40 * 80


def noise_image(seed, size=(120, 90)):
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
    """Class, score, box and mask of all detections of an image, by falling score."""
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
    images = [noise_image(seed, (384, 384)) for seed in range(2)]
    detector.shorter_side = detector.longer_side = 384
    found = detector(images)
    assert all(len(rows(objects)) > 2 for objects in found)
    for ours, theirs in zip(map(rows, found), transformers_rows(folder, images), strict=True):
        assert [row[0] for row in ours] == [row[0] for row in theirs]
        assert_close([row[1] for row in ours], [row[1] for row in theirs], rtol=0, atol=1e-4)
        assert all((a[3] != b[3]).sum() <= 2 for a, b in zip(ours, theirs, strict=True))


def resized_as_opencv(image, size):
    """OpenCV's INTER_LINEAR: the two nearest pixels in each direction, weighted, rounded to 8 bits with halves up."""
    pixels = np.asarray(image).astype(np.float64)
    for axis in (0, 1):
        before = pixels.shape[axis]
        places = ((np.arange(size[axis]) + 0.5) * before / size[axis] - 0.5).clip(0, before - 1)
        low = np.floor(places).astype(int)
        shape = [-1 if i == axis else 1 for i in range(3)]
        weight = (places - low).reshape(shape)
        high = (low + 1).clip(max=before - 1)
        pixels = (1 - weight) * pixels.take(low, axis) + weight * pixels.take(high, axis)
    return np.floor(pixels + 0.5).astype(np.uint8)


def test_images_are_resized_as_by_mmcv():
    image = noise_image(0, (150, 131))
    images = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    got = Frame((131, 150), (96, 83)).resize(images)
    expected = torch.from_numpy(resized_as_opencv(image, (96, 83))).permute(2, 0, 1)[None]
    levels = 255 * got
    assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (levels - expected).abs().max() <= 1 + 1e-4  # where a weight is rounded in float32
    assert ((levels - expected).abs() > 0.5).float().mean() < 1e-3


def test_an_antialiased_filter_is_noticed():
    image = noise_image(0, (150, 131))
    smooth = np.array(image.resize((83, 96), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(smooth - resized_as_opencv(image, (96, 83))).max() > 1


def test_input_is_normalised_as_by_transformers_processor(folder, detector):
    from transformers import Mask2FormerImageProcessorPil

    seen = []
    detector.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    image = noise_image(0, (150, 150))
    detector([image])
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder, do_resize=False, size_divisor=32)
    small = Image.fromarray(resized_as_opencv(image, (96, 96)))
    wanted = processor([small], return_tensors="pt")["pixel_values"]
    assert_close(seen[0]["pixel_values"], wanted, rtol=0, atol=1.01 / 255 / 0.224)


def test_batches_are_as_singles(detector):
    sizes = [(120, 90), (80, 80), (120, 90), (80, 80), (120, 90)]
    images = [noise_image(seed, size) for seed, size in enumerate(sizes)]
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
    detector([noise_image(seed) for seed in range(7)])
    assert sizes == [3, 3, 1]


def test_names_are_genevals(detector, monkeypatch):
    cow, mouse = Detection((0, 0, 1, 1), 0.9), Detection((0, 0, 1, 1), 0.8)
    monkeypatch.setattr(detector_module, "find_instances", lambda *_, **__: [(19, cow), (64, mouse), (19, mouse)])
    assert detector([noise_image(0)]) == [{"cow": [cow, mouse], "computer mouse": [mouse]}]


def test_masks_have_the_size_of_the_image(detector):
    (objects,) = detector([noise_image(0, (130, 70))])
    assert {mask.shape for _, _, _, mask in rows(objects)} == {(70, 130)}
    assert {mask.dtype for _, _, _, mask in rows(objects)} == {torch.bool}


def test_half_precision_loads(folder):
    detector = Mask2FormerDetector.from_pretrained(folder, torch_dtype=torch.bfloat16)
    detector.shorter_side = 64
    assert detector.model.dtype == torch.bfloat16
    detector([noise_image(0)])


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


def test_a_batch_holds_an_image(folder):
    with pytest.raises(ValueError, match="batch_size should be at least 1"):
        Mask2FormerDetector.from_pretrained(folder, batch_size=0)
