"""Rows in MJ-Bench's schema and rewards that need no model."""

from __future__ import annotations

from PIL import Image

from fk_reward.benchmarks.mjbench.questions import QuestionTable, RowFile
from fk_reward.rewards import CallableReward

BRIGHTNESS = CallableReward(lambda images, captions: images.mean(dim=(1, 2, 3)), "brightness")


def grey(level):
    return Image.new("RGB", (8, 8), (level, level, level))


def pair_rows(*levels):
    """Rows of grey images, the preferred one in the place that alternates; each caption stands twice."""
    rows = []
    for number, (preferred, other) in enumerate(levels):
        label = number % 2
        images = {f"image{label}": grey(preferred), f"image{1 - label}": grey(other)}
        rows.append({"caption": f"caption {number // 2}", **images, "label": label, "info": ""})
    return rows


def table(rows, perspective="alignment"):
    return QuestionTable([RowFile("rows", rows)], perspective)


class Counting:
    """A reward's function that writes down what it was asked, and is killed at the calls of `killed_at`."""

    def __init__(self, killed_at=()):
        self.asked, self.calls, self.killed_at = [], 0, set(killed_at)

    def __call__(self, images, captions):
        self.calls += 1
        if self.calls in self.killed_at:
            raise KeyboardInterrupt
        self.asked += list(captions)
        return images.mean(dim=(1, 2, 3))
