"""Reading Mask2Former's output, against transformers' own post-processing where the two agree in resolution."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from fk_reward.benchmarks.geneval import detector as frames
from fk_reward.benchmarks.geneval.detector import Frame, find_instances

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
    ("picture", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),  # COCO's usual size, as mmdetection's logs have it
        ((640, 480), (1067, 800), (1088, 800)),
        ((512, 1024), (667, 1333), (672, 1344)),
        ((100, 900), (148, 1333), (160, 1344)),
    ],
)
def test_sizes(picture, resized, padded):
    assert (Frame.of(picture).resized, Frame.of(picture).padded) == (resized, padded)


def ramp(padded, axis, *, stride=4):
    """Logits that are the coordinate, in pixels of the input, of the middle of their cell."""
    height, width = (side // stride for side in padded)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows, columns)[axis][None] + 0.5) * stride


def check_restores(frame):
    """A ramp is linear, so that bilinear interpolation must give each pixel its own coordinate in the input."""
    for axis in (0, 1):
        scale = frame.resized[axis] / frame.picture[axis]
        values = frame.restore(ramp(frame.padded, axis))[0].movedim(axis, 0)[5:-5]
        wanted = (torch.arange(frame.picture[axis]) + 0.5)[5:-5, None] * scale
        assert_close(values, wanted.expand_as(values), rtol=0, atol=0.02)


@pytest.mark.parametrize("picture", [(60, 100), (100, 60), (90, 90), (300, 500)])
def test_masks_come_back_to_their_place(picture):
    frame = Frame.of(picture, shorter_side=150, longer_side=230)
    assert frame.padded != frame.resized
    check_restores(frame)


def test_padding_that_stays_is_noticed(monkeypatch):
    frame = Frame.of((60, 100), shorter_side=150, longer_side=230)
    monkeypatch.setattr(frames, "DIVISOR", 1)  # the mask is taken for one of the picture without its padding
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
