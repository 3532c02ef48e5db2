"""Which detections count: both thresholds, their number, their order."""

from __future__ import annotations

import math

import pytest

from fk_reward.benchmarks.geneval import judge
from fk_reward.benchmarks.geneval.judge import Detection, select_detections

BOX = (0.0, 0.0, 10.0, 10.0)


def scores_kept(scores, tag, name="cow"):
    objects = {name: [Detection(BOX, score) for score in scores]}
    return [kept.score for kept in select_detections(objects, tag).get(name, [])]


def check_thresholds():
    above, below = math.nextafter(0.3, 1), math.nextafter(0.3, 0)
    for tag in ("single_object", "two_object", "colors", "position", "color_attr", "anything else"):
        assert scores_kept([below, 0.3, above], tag) == [above]
    above, below = math.nextafter(0.9, 1), math.nextafter(0.9, 0)
    assert scores_kept([below, 0.9, above], "counting") == [above]
    assert scores_kept([below, 0.9, above], "colors") == [above, 0.9, below]


def test_scores_must_be_above_the_threshold():
    check_thresholds()


@pytest.mark.parametrize(
    ("name", "value"), [("COUNTING_THRESHOLD", 0.3), ("THRESHOLD", 0.31), ("THRESHOLD", 0.9), ("THRESHOLD", 0.29)]
)
def test_wrong_thresholds_are_noticed(monkeypatch, name, value):
    monkeypatch.setattr(judge, name, value)
    with pytest.raises(AssertionError):
        check_thresholds()


def check_order_and_number():
    scores = [0.31 + 0.01 * (7 * i % 20) for i in range(20)]
    assert scores_kept(scores, "two_object") == sorted(scores, reverse=True)[:16]
    assert len(scores_kept(scores[:16], "two_object")) == 16


def test_the_sixteen_surest_are_kept():
    check_order_and_number()


def test_another_number_is_noticed(monkeypatch):
    monkeypatch.setattr(judge, "MAX_OBJECTS", 17)
    with pytest.raises(AssertionError):
        check_order_and_number()


def test_classes_are_apart_and_empty_ones_are_left_out():
    cow, dog, faint = Detection(BOX, 0.8), Detection(BOX, 0.9), Detection(BOX, 0.1)
    objects = {"cow": [cow], "dog": [faint, dog], "cat": [faint], "car": []}
    assert select_detections(objects, "two_object") == {"cow": [cow], "dog": [dog]}
    assert objects["dog"] == [faint, dog]


@pytest.mark.parametrize("box", [(5, 0, 5, 10), (0, 9, 10, 3), (0, 0, math.nan, 1)])
def test_empty_boxes_are_refused(box):
    with pytest.raises(ValueError, match="x0 < x1"):
        Detection(box, 0.5)
