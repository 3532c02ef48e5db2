"""Which detections count, and every rule of the judge on hand-made ones, on both sides of each boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fk_reward.benchmarks.geneval import judge as rules
from fk_reward.benchmarks.geneval.judge import Detection, judge, relative_position, select_detections
from fk_reward.benchmarks.geneval.prompts import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)

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
    monkeypatch.setattr(rules, name, value)
    with pytest.raises(AssertionError):
        check_thresholds()


def check_order_and_number():
    scores = [0.31 + 0.01 * (7 * i % 20) for i in range(20)]
    assert scores_kept(scores, "two_object") == sorted(scores, reverse=True)[:16]
    assert len(scores_kept(scores[:16], "two_object")) == 16


def test_the_sixteen_surest_are_kept():
    check_order_and_number()


def test_another_number_is_noticed(monkeypatch):
    monkeypatch.setattr(rules, "MAX_OBJECTS", 17)
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


def at(x, y, *, size=10.0):
    """A box of a centre."""
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def found(*boxes, score=0.95):
    return [Detection(box, score) for box in boxes]


def no_color(class_name, detections):
    raise AssertionError("the color was asked for")


def painted(**colors):
    """A `color_of` that knows the colours of each class in the order of its detections."""
    return lambda name, detections: colors[name][: len(detections)]


# Counts


def check_counts():
    record = counting_record("cow", 3)
    numbers = [n for n in range(7) if judge(record, {"cow": found(*[BOX] * n)}, no_color).correct]
    assert numbers == [3]


def test_counting_is_exact():
    check_counts()


def test_a_forgotten_exclusion_is_noticed(monkeypatch):
    monkeypatch.setattr(rules, "_too_many", lambda *_: "")
    with pytest.raises(AssertionError):
        check_counts()


def check_unsure_objects_are_not_counted():
    cows = [*found(BOX, BOX), *found(BOX, score=0.6)]
    kept = select_detections({"cow": cows}, "counting")
    assert judge(counting_record("cow", 2), kept, no_color).correct
    assert not judge(counting_record("cow", 3), kept, no_color).correct


def test_counting_takes_sure_objects_only():
    check_unsure_objects_are_not_counted()


def test_a_forgotten_counting_threshold_is_noticed(monkeypatch):

    monkeypatch.setattr(rules, "COUNTING_THRESHOLD", rules.THRESHOLD)
    with pytest.raises(AssertionError):
        check_unsure_objects_are_not_counted()


def test_other_tasks_take_more_than_was_asked_for():
    objects = {"cow": found(BOX, BOX, BOX), "dog": found(BOX)}
    assert judge(single_object_record("cow"), objects, no_color).correct
    assert judge(two_object_record("dog", "cow"), objects, no_color).correct


def test_every_object_must_be_there():
    verdict = judge(two_object_record("dog", "cow"), {"cow": found(BOX)}, no_color)
    assert (verdict.correct, verdict.reason) == (False, "wanted 1 of dog, found 0")


def test_reasons_are_listed():
    record = two_object_record("dog", "cow") | {"exclude": [{"class": "cat", "count": 1}]}
    reasons = judge(record, {"cat": found(BOX, BOX)}, no_color).reason.splitlines()
    assert reasons == ["wanted 1 of dog, found 0", "wanted 1 of cow, found 0", "wanted fewer than 1 of cat, found 2"]


def test_details_hold_what_counted():
    objects = {"cow": found((1.0, 2.0, 3.0, 4.0), BOX), "cup": found(BOX, score=0.4)}
    details = judge(single_object_record("dog"), objects, no_color).details
    assert details == {"cow": [[1.0, 2.0, 3.0, 4.0, 0.95], [*BOX, 0.95]], "cup": [[*BOX, 0.4]]}
    assert judge(single_object_record("dog"), {}, no_color).details == {}


# Colours


def test_color_of_the_object():
    record = color_record("cow", "red")
    assert judge(record, {"cow": found(BOX)}, painted(cow=["red"])).correct
    verdict = judge(record, {"cow": found(BOX)}, painted(cow=["blue"]))
    assert (verdict.correct, verdict.reason) == (False, "wanted 1 red cow, found 1 blue")


def check_only_the_surest_has_a_color():
    record, objects = color_record("cow", "red"), {"cow": found(BOX, BOX)}
    assert judge(record, objects, painted(cow=["red", "blue"])).correct
    assert not judge(record, objects, painted(cow=["blue", "red"])).correct


def test_only_the_surest_is_looked_at():
    check_only_the_surest_has_a_color()


def test_a_judge_that_looks_at_all_is_noticed(monkeypatch):
    wrong = rules._wrong_color

    def lenient(wanted, detections, color_of):
        return wrong(wanted, [*detections, *found(BOX)], color_of)

    monkeypatch.setattr(rules, "_wrong_color", lenient)
    with pytest.raises(AssertionError):
        check_only_the_surest_has_a_color()


@pytest.mark.parametrize(("colors", "correct"), [("rrr", True), ("rrb", False), ("bbb", False)])
def test_all_objects_of_a_count_have_the_color(colors, correct):
    record = {"include": [{"class": "cow", "count": 3, "color": "red"}]}
    names = [{"r": "red", "b": "blue"}[letter] for letter in colors]
    assert judge(record, {"cow": found(BOX, BOX, BOX)}, painted(cow=names)).correct == correct


def test_colors_of_two_objects():
    record, objects = color_attribution_record(("red", "cow"), ("blue", "dog")), {"cow": found(BOX), "dog": found(BOX)}
    assert judge(record, objects, painted(cow=["red"], dog=["blue"])).correct
    assert not judge(record, objects, painted(cow=["blue"], dog=["red"])).correct


def test_a_missing_object_has_no_color():
    assert judge(color_record("cow", "red"), {}, no_color).reason == "wanted 1 of cow, found 0"


def test_a_classifier_that_forgets_one_is_refused():
    with pytest.raises(ValueError, match="a colour for each of 1 detections, got 0"):
        judge(color_record("cow", "red"), {"cow": found(BOX)}, lambda name, detections: [])


# Places

NEAR, FAR = 3.999, 4.001
"""Boxes of 10 have the offset 2; along an axis a relation begins where (d - 2) / d > 0.5, at 4."""

CORNER = 2 / (1 - 0.5 * 2**0.5)
"""On the diagonal (d - 2) / (d * sqrt 2) > 0.5, at 6.83."""


def check_places():
    origin = at(0, 0)
    for name, x, y in (("left of", -1, 0), ("right of", 1, 0), ("above", 0, -1), ("below", 0, 1)):
        assert relative_position(at(FAR * x, FAR * y), origin) == {name}
        assert relative_position(at(NEAR * x, NEAR * y), origin) == set()
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        far, near = CORNER + 0.001, CORNER - 0.001
        both = {"left of" if x < 0 else "right of", "above" if y < 0 else "below"}
        assert relative_position(at(far * x, far * y), origin) == both
        assert relative_position(at(near * x, near * y), origin) == set()
    assert relative_position(at(-2, 0), origin) == relative_position(origin, origin) == set()


def test_places_begin_where_they_should():
    check_places()


@pytest.mark.parametrize(
    ("name", "value"),
    [("POSITION_OFFSET", 0.0), ("POSITION_OFFSET", 0.11), ("POSITION_OFFSET", 0.05), ("MIN_SHARE", 0.4)],
)
def test_wrong_numbers_are_noticed(monkeypatch, name, value):
    monkeypatch.setattr(rules, name, value)
    with pytest.raises(AssertionError):
        check_places()


def test_sizes_count_along_their_axis():
    wide, tall = (-50.0, -1.0, 50.0, 1.0), (-1.0, -50.0, 1.0, 50.0)
    moved = (wide[0] + 21, wide[1], wide[2] + 21, wide[3])
    assert relative_position(moved, wide) == set()  # the summed widths are 200, so 20 are taken off 21
    assert relative_position(at(6, 0, size=2), tall) == {"right of"}
    assert relative_position(at(0, 6, size=2), tall) == set()


def test_a_hair_is_no_distance():
    tiny = at(0, 0, size=1e-4)
    assert relative_position(at(0.0009, 0, size=1e-4), tiny) == set()
    assert relative_position(at(0.0012, 0, size=1e-4), tiny) == {"right of"}


def formula(first, second):
    """GenEval's relation written as vectors."""
    corners = np.array([first, second]).reshape(2, 2, 2)
    offset = corners[0].mean(0) - corners[1].mean(0)
    sizes = (corners[:, 1] - corners[:, 0]).sum(0)
    rest = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sizes, 0)
    if (np.abs(rest) < 1e-3).all():
        return set()
    axes = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    return {name for name, axis in axes.items() if rest @ axis / np.linalg.norm(offset) > 0.5}


def test_equals_the_formula_on_random_boxes():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (4000, 2, 2, 2))
    boxes = np.sort(corners, axis=2).reshape(4000, 2, 4).tolist()
    relations = [relative_position(tuple(first), tuple(second)) for first, second in boxes]
    assert relations == [formula(first, second) for first, second in boxes]
    assert {len(relation) for relation in relations} == {0, 1, 2}


def check_positions():
    record = position_record("cow", "left of", "dog")
    assert judge(record, {"cow": found(at(0, 0)), "dog": found(at(50, 0))}, no_color).correct
    assert judge(record, {"cow": found(at(0, 0)), "dog": found(at(50, 40))}, no_color).correct
    for x, y in ((-50, 0), (0, 50), (NEAR, 0)):
        assert not judge(record, {"cow": found(at(0, 0)), "dog": found(at(x, y))}, no_color).correct


def test_the_second_clause_is_placed_by_the_first():
    check_positions()


def test_a_dropped_offset_is_noticed_by_the_judge(monkeypatch):
    monkeypatch.setattr(rules, "POSITION_OFFSET", 0.0)
    with pytest.raises(AssertionError):
        check_positions()


def test_swapped_places_are_noticed(monkeypatch):
    monkeypatch.setattr(rules, "relative_position", lambda first, second: relative_position(second, first))
    with pytest.raises(AssertionError):
        check_positions()


def test_the_reason_says_where_it_is():
    record = position_record("cow", "left of", "dog")
    verdict = judge(record, {"cow": found(at(60, 60)), "dog": found(at(0, 0))}, no_color)
    assert verdict.reason == "wanted cow left of the other, found it below and right of"
    verdict = judge(record, {"cow": found(BOX), "dog": found(BOX)}, no_color)
    assert verdict.reason.endswith("neither beside nor above nor below")


def test_only_the_surest_is_placed():
    record, dog = position_record("cow", "left of", "dog"), found(at(50, 0))
    assert judge(record, {"cow": found(at(0, 0), at(99, 0)), "dog": dog}, no_color).correct
    assert not judge(record, {"cow": found(at(99, 0), at(0, 0)), "dog": dog}, no_color).correct


def test_all_objects_of_a_count_are_placed_by_all_of_the_other():
    include = [{"class": "dog", "count": 2}, {"class": "cow", "count": 2, "position": ["above", 0]}]
    cows = found(at(0, 0), at(20, 0))
    assert judge({"include": include}, {"cow": cows, "dog": found(at(0, 80), at(20, 80))}, no_color).correct
    for dogs in (found(at(0, 80), at(20, -80)), found(at(20, -80), at(0, 80))):
        assert not judge({"include": include}, {"cow": cows, "dog": dogs}, no_color).correct


def test_nothing_to_be_left_of():
    verdict = judge(position_record("cow", "left of", "dog"), {"cow": found(BOX)}, no_color)
    assert verdict.reason.splitlines() == ["wanted 1 of dog, found 0", "no target for cow to be left of"]


def test_a_clause_of_the_wrong_color_is_nothing_to_be_left_of():
    include = [{"class": "dog", "count": 1, "color": "red"}, {"class": "cow", "count": 1, "position": ["left of", 0]}]
    objects = {"cow": found(at(0, 0)), "dog": found(at(50, 0))}
    assert judge({"include": include}, objects, painted(dog=["red"])).correct
    verdict = judge({"include": include}, objects, painted(dog=["blue"]))
    assert verdict.reason.splitlines()[1] == "no target for cow to be left of"


def test_color_comes_before_place():
    include = [{"class": "dog", "count": 1}, {"class": "cow", "count": 1, "color": "red", "position": ["left of", 0]}]
    objects = {"cow": found(at(99, 0)), "dog": found(at(50, 0))}
    verdict = judge({"include": include}, objects, painted(cow=["blue"]))
    assert verdict.reason == "wanted 1 red cow, found 1 blue"
