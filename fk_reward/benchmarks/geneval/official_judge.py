"""GenEval's judge: a detector, a classifier of colours, and the rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from PIL import Image, ImageOps

from fk_reward.benchmarks.geneval.colors import CLIP, CLIPColorClassifier
from fk_reward.benchmarks.geneval.detection import Detection, select_detections
from fk_reward.benchmarks.geneval.detector import DETECTOR, Mask2FormerDetector
from fk_reward.benchmarks.geneval.judge import Verdict, judge
from fk_reward.benchmarks.geneval.known_scenes import known_verdicts
from fk_reward.benchmarks.geneval.object_names import COLORS, OBJECT_NAMES
from fk_reward.benchmarks.geneval.self_test import check_known_verdicts

DetectFn: TypeAlias = Callable[[list[Image.Image]], Sequence[Mapping[str, Sequence[Detection]]]]
"""Pictures -> for each, class -> what was found of it."""

ColorFn: TypeAlias = Callable[[Image.Image, str, Sequence[Detection]], Sequence[str]]
"""Picture, class and detections of it -> the colour of each."""


class GenEvalJudge:
    """Judges pictures by GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513).

    Args:
        detector: finds objects.
        color_classifier: names their colours.
        batch_size: pictures whose masks are held at a time.

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
        return cls(
            Mask2FormerDetector.from_pretrained(
                detector, device=device, torch_dtype=torch_dtype, batch_size=batch_size
            ),
            CLIPColorClassifier.from_pretrained(clip, device=device, torch_dtype=torch_dtype),
            batch_size=batch_size,
        )

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge pictures.

        Args:
            records: one for each picture.
            images: of any sizes and modes; turned as their EXIF data say.

        Raises:
            ValueError: the counts differ, or a record names a class or a colour that the judge does not know.
        """
        if len(records) != len(images):
            raise ValueError(f"There should be a record for each of {len(images)} pictures, got {len(records)}.")
        refuse_unknown_names(records)
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
        """Judge drawn pictures of each task, one that is correct and one that is not.

        Raises:
            SelfTestError: a verdict is not as it should be.
        """
        check_known_verdicts(self, known_verdicts())


def refuse_unknown_names(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse what no detector of COCO finds and what has no place among the ten colours.

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
