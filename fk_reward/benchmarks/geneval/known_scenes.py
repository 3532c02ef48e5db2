"""The self-test of GenEval's judge: for each task a picture that is correct and one that is not."""

from __future__ import annotations

from typing import Any

from fk_reward.benchmarks.geneval.drawn_scenes import DrawnObject, draw_scene
from fk_reward.benchmarks.geneval.records import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)
from fk_reward.benchmarks.geneval.self_test import KnownVerdict

STOP_SIGN = DrawnObject("stop sign", "red", x=0.27, y=0.4, radius=0.19)
CLOCK = DrawnObject("clock", "yellow", x=0.74, y=0.4, radius=0.17)
CLOCKS = tuple(DrawnObject("clock", "yellow", x=x, y=0.4, radius=0.13) for x in (0.18, 0.5, 0.82))

KNOWN_SCENES: tuple[tuple[dict[str, Any], tuple[DrawnObject, ...], bool], ...] = (
    (single_object_record("stop sign"), (STOP_SIGN,), True),
    (single_object_record("stop sign"), (), False),
    (two_object_record("stop sign", "clock"), (STOP_SIGN, CLOCK), True),
    (two_object_record("stop sign", "clock"), (STOP_SIGN,), False),
    (counting_record("clock", 2), CLOCKS[::2], True),
    (counting_record("clock", 2), CLOCKS, False),
    (color_record("stop sign", "red"), (STOP_SIGN,), True),
    (color_record("stop sign", "blue"), (STOP_SIGN,), False),
    (position_record("stop sign", "left of", "clock"), (STOP_SIGN, CLOCK), True),
    (position_record("stop sign", "right of", "clock"), (STOP_SIGN, CLOCK), False),
    (color_attribution_record(("red", "stop sign"), ("yellow", "clock")), (STOP_SIGN, CLOCK), True),
    (color_attribution_record(("yellow", "stop sign"), ("red", "clock")), (STOP_SIGN, CLOCK), False),
)
"""Record, what is drawn, and whether it fulfils the record."""


def known_verdicts() -> list[KnownVerdict]:
    """Draw the pictures.

    Example:
        >>> [case.correct for case in known_verdicts()] == [True, False] * 6
        True
    """
    return [KnownVerdict(record, draw_scene(objects), correct) for record, objects, correct in KNOWN_SCENES]
