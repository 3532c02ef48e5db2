"""GenEval's judge: a detector, a classifier of colours, the rules, and a self-test on drawn images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from PIL import Image, ImageDraw, ImageOps

from fk_reward.benchmarks.geneval.colors import CLIP, CLIPColorClassifier
from fk_reward.benchmarks.geneval.detector import DETECTOR, Mask2FormerDetector
from fk_reward.benchmarks.geneval.judge import Detection, judge, select_detections
from fk_reward.benchmarks.geneval.prompts import (
    COLORS,
    OBJECT_NAMES,
    color_attribution_record,
    color_record,
    counting_record,
    geneval_records,
    position_record,
    read_records,
    single_object_record,
    two_object_record,
)
from fk_reward.benchmarks.questions.loading import second_record_judge
from fk_reward.benchmarks.task import KnownVerdict, Task, TaskOptions, Verdict, check_known_verdicts
from fk_reward.version import __version__

SKY, GROUND, POLE, DARK, WHITE = (166, 200, 232), (122, 138, 104), (130, 130, 134), (30, 30, 32), (245, 245, 245)
PAINTS: dict[str, tuple[int, int, int]] = {"red": (196, 26, 32), "yellow": (250, 210, 30)}

_LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "S": (((1, 0), (0, 0), (0, 0.5), (1, 0.5), (1, 1), (0, 1)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "O": (((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),),
    "P": (((0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5)),),
}
"""Strokes of letters in the unit square, y pointing down; drawn by hand, because fonts differ between machines."""


@dataclass(frozen=True)
class DrawnObject:
    """A stop sign or a clock; lengths are fractions of the image's side.

    Attributes:
        name: `"stop sign"` or `"clock"`.
        color: of its face, one of `PAINTS`.
        x: centre from the left.
        y: centre from the top.
        radius: of the circle around it.
    """

    name: str
    color: str
    x: float
    y: float
    radius: float


def draw_scene(objects: Sequence[DrawnObject], *, size: int = 512) -> Image.Image:
    """Draw objects in front of sky and ground.

    Args:
        objects: apart from each other.
        size: side in pixels.

    Returns:
        An RGB image.

    Example:
        >>> image = draw_scene([DrawnObject("clock", "yellow", 0.5, 0.5, 0.25)], size=64)
        >>> image.size, image.getpixel((24, 38))
        ((64, 64), (250, 210, 30))
    """
    side = 4 * size  # ImageDraw has no anti-aliasing: the image is drawn four times as large and averaged
    image = Image.new("RGB", (side, side), SKY)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, round(0.78 * side), side, side), fill=GROUND)
    for obj in objects:
        draw = _draw_stop_sign if obj.name == "stop sign" else _draw_clock
        draw(pen, obj.x * side, obj.y * side, obj.radius * side, PAINTS[obj.color])
    return image.resize((size, size), Image.Resampling.BOX)


def _draw_stop_sign(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, int, int]) -> None:
    pen.rectangle((x - 0.05 * radius, y, x + 0.05 * radius, y + 2.4 * radius), fill=POLE)
    for share, color in ((1.0, WHITE), (0.93, paint)):
        angles = [math.radians(22.5 + 45 * corner) for corner in range(8)]
        pen.polygon([(x + share * radius * math.cos(a), y + share * radius * math.sin(a)) for a in angles], fill=color)
    width, height, gap = 0.26 * radius, 0.5 * radius, 0.12 * radius
    left, top = x - 2 * width - 1.5 * gap, y - height / 2
    for place, letter in enumerate("STOP"):
        for stroke in _LETTERS[letter]:
            points = [(left + place * (width + gap) + u * width, top + v * height) for u, v in stroke]
            pen.line(points, fill=WHITE, width=round(0.09 * radius), joint="curve")


def _draw_clock(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, int, int]) -> None:
    for share, color in ((1.0, DARK), (0.9, paint)):
        pen.ellipse((x - share * radius, y - share * radius, x + share * radius, y + share * radius), fill=color)
    hands = [(-60, 0.0, 0.45, 0.08), (36, 0.0, 0.68, 0.06)]  # ten past ten: degrees from the top, ends, thickness
    ticks = [(30 * hour, 0.72 if hour % 3 == 0 else 0.78, 0.84, 0.05) for hour in range(12)]
    for degrees, start, end, width in hands + ticks:
        dx, dy = math.sin(math.radians(degrees)) * radius, -math.cos(math.radians(degrees)) * radius
        line = (x + start * dx, y + start * dy, x + end * dx, y + end * dy)
        pen.line(line, fill=DARK, width=round(width * radius))


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
    """Draw the images.

    Example:
        >>> [case.correct for case in known_verdicts()] == [True, False] * 6
        True
    """
    return [KnownVerdict(record, draw_scene(objects), correct) for record, objects, correct in KNOWN_SCENES]


DetectFn: TypeAlias = Callable[[list[Image.Image]], Sequence[Mapping[str, Sequence[Detection]]]]
"""Images -> for each, class -> what was found of it."""

ColorFn: TypeAlias = Callable[[Image.Image, str, Sequence[Detection]], Sequence[str]]
"""Image, class and detections of it -> the colour of each."""


class GenEvalJudge:
    """Judges images by GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513).

    Args:
        detector: finds objects.
        color_classifier: names their colours.
        batch_size: images whose masks are held at a time.

    Attributes:
        identity: what its verdicts depend on: the version, and the names of the models that `from_pretrained` loads.

    Raises:
        ValueError: `batch_size` is below 1.

    Example:
        >>> judge = GenEvalJudge(lambda images: [{} for _ in images], color_classifier=lambda *_: [])
        >>> record = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
        >>> judge.judge_images([record], [Image.new("RGB", (8, 8))])[0].reason
        'wanted 1 of cow, found 0'
    """

    def __init__(self, detector: DetectFn, color_classifier: ColorFn, *, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, got {batch_size}.")
        self.detector = detector
        self.color_classifier = color_classifier
        self.batch_size = batch_size
        self.identity: dict[str, Any] = {"judge": "GenEval's rules", "fk_reward": __version__}

    @classmethod
    def from_pretrained(
        cls,
        detector: str | os.PathLike[str] = DETECTOR,
        clip: str | os.PathLike[str] = CLIP,
        *,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> GenEvalJudge:
        """Load Mask2Former and CLIP from the hub or from folders.

        Other revisions than `main` go through the `from_pretrained` of the two parts.

        Args:
            detector: hub id or folder of a Mask2Former that was trained on COCO's instances.
            clip: hub id or folder of a CLIP.
            device: of both.
            torch_dtype: of the weights of both.
            batch_size: as for the class, and of the detector.

        Raises:
            OSError: files are missing.
            ValueError: as the two parts.
        """
        options: dict[str, Any] = {"device": device, "torch_dtype": torch_dtype}
        judge = cls(
            Mask2FormerDetector.from_pretrained(detector, batch_size=batch_size, **options),
            CLIPColorClassifier.from_pretrained(clip, **options),
            batch_size=batch_size,
        )
        judge.identity |= {"detector": str(detector), "clip": str(clip)}
        return judge

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge images.

        Args:
            records: one for each image.
            images: of any sizes and modes; turned as their EXIF data say.

        Raises:
            ValueError: the counts differ, or a record names an unknown class or colour.
        """
        if len(records) != len(images):
            raise ValueError(f"There should be a record for each of {len(images)} images, got {len(records)}.")
        refuse_unknown_names(records)  # an unknown class would count as never found
        upright = [ImageOps.exif_transpose(image).convert("RGB") for image in images]
        starts = range(0, len(images), self.batch_size)
        batches = [slice(start, start + self.batch_size) for start in starts]
        return [verdict for part in batches for verdict in self._judge_batch(records[part], upright[part])]

    def _judge_batch(self, records: Sequence[Mapping[str, Any]], images: list[Image.Image]) -> list[Verdict]:
        return [
            judge(record, select_detections(objects, record["tag"]), partial(self.color_classifier, image))
            for record, image, objects in zip(records, images, self.detector(images), strict=True)
        ]

    def self_test(self) -> None:
        """Judge drawn images of each task, one that is correct and one that is not.

        Raises:
            SelfTestError: a verdict is not as it should be.
        """
        check_known_verdicts(self, known_verdicts())


def refuse_unknown_names(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise for a class that a detector of COCO does not know, and for a colour that is not one of the ten.

    Args:
        records: of a suite.

    Raises:
        ValueError: with the prompt and the name.

    Example:
        >>> refuse_unknown_names([{"prompt": "a unicorn", "include": [{"class": "unicorn", "count": 1}]}])
        Traceback (most recent call last):
        ValueError: 'a unicorn': the judge does not know the class 'unicorn'; it knows COCO's, see OBJECT_NAMES.
    """
    for record in records:
        for clause in [*record.get("include", ()), *record.get("exclude", ())]:
            if clause["class"] not in OBJECT_NAMES:
                raise ValueError(
                    f"{record['prompt']!r}: the judge does not know the class {clause['class']!r}; "
                    "it knows COCO's, see OBJECT_NAMES."
                )
            if clause.get("color", COLORS[0]) not in COLORS:
                raise ValueError(
                    f"{record['prompt']!r}: the judge does not know the color {clause['color']!r}; "
                    f"it knows {', '.join(COLORS)}."
                )


def official_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """GenEval, or other records in its format, by its own judge.

    Raises:
        ValueError: an option of the other suites, or a file with records that the judge cannot judge.
    """
    if options.num_prompts is not None:
        raise ValueError("The official suite has 553 prompts; for fewer, name a file with some of them.")
    records = geneval_records() if options.prompts is None else read_records(options.prompts)
    refuse_unknown_names(records)
    return Task("official", records, partial(_load_official_judge, options), second_record_judge(options))


def _load_official_judge(options: TaskOptions, device: str) -> GenEvalJudge:
    return GenEvalJudge.from_pretrained(options.detector or DETECTOR, options.clip or CLIP, device=device)
