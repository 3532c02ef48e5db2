"""The suites: GenEval's prompts, a file in their format, and prompts of the shapes world; each with its judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fk_reward.benchmarks.geneval.judge import KnownVerdict, Verdict, check_known_verdicts
from fk_reward.benchmarks.geneval.prompts import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)
from fk_reward.benchmarks.geneval.scoring import Judge
from fk_reward.rewards.inputs import in_order, pictures_of
from fk_reward.shapes import (
    TASKS,
    ObjectSpec,
    ShapesPrompt,
    all_prompts,
    benchmark_prompts,
    render,
    sample_scene,
    true_prompts,
    verify,
)
from fk_reward.version import __version__

OFFICIAL, SHAPES = "official", "shapes"
SUITES = (OFFICIAL, SHAPES)
NUM_SHAPES_PROMPTS = 60


def suite_records(
    suite: str, *, prompts: Path | None = None, num_prompts: int | None = None
) -> tuple[dict[str, Any], ...]:
    """The records of a suite.

    Args:
        suite: one of `SUITES`.
        prompts: a file in GenEval's format in place of its 553 records.
        num_prompts: of the shapes world, the tasks in turn.

    Raises:
        ValueError: an option of the other suite, or a file with records that the judge cannot judge.

    Example:
        >>> [record["tag"] for record in suite_records("shapes", num_prompts=2)]
        ['single_object', 'two_object']
    """
    from fk_reward.benchmarks.geneval.official_judge import refuse_unknown_names
    from fk_reward.benchmarks.geneval.prompts import geneval_records, read_records
    from fk_reward.benchmarks.geneval.suites import shapes_records

    if suite not in SUITES:
        raise ValueError(f"The suite should be one of {', '.join(SUITES)}, got {suite!r}.")
    if suite == SHAPES:
        if prompts is not None:
            raise ValueError("A file of prompts goes with the official suite; the shapes suite takes a number of them.")
        return shapes_records(NUM_SHAPES_PROMPTS if num_prompts is None else num_prompts)
    if num_prompts is not None:
        raise ValueError("The official suite has its 553 prompts; give a file with some of them for fewer.")
    if prompts is None:
        return geneval_records()
    records = read_records(prompts)
    refuse_unknown_names(records)
    return records


def load_judge(suite: str, *, device: str, models: Mapping[str, str | None]) -> tuple[Judge, dict[str, Any]]:
    """The judge of a suite, and what its verdicts depend on.

    Args:
        suite: one of `SUITES`.
        device: of the models.
        models: `detector` and `clip` of the official judge, hub ids or folders; None for GenEval's own.
    """
    if suite == SHAPES:
        from fk_reward.benchmarks.geneval.suites import ShapesJudge

        return ShapesJudge(), {"judge": "the verifier of the shapes world", "fk_reward": __version__}
    from fk_reward.benchmarks.geneval.colors import CLIP
    from fk_reward.benchmarks.geneval.detector import DETECTOR
    from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge

    detector, clip = models.get("detector") or DETECTOR, models.get("clip") or CLIP
    identity = {"judge": "GenEval's rules", "fk_reward": __version__, "detector": detector, "clip": clip}
    return GenEvalJudge.from_pretrained(detector, clip, device=device), identity


def shapes_records(num_prompts: int) -> tuple[dict[str, Any], ...]:
    """Held-out prompts of the shapes world as records, the tasks in turn.

    Args:
        num_prompts: how many; the smaller tasks repeat theirs, see `fk_reward.shapes.benchmark_prompts`.

    Example:
        >>> [record["prompt"] for record in shapes_records(2)]
        ['a photo of a circle', 'a photo of a square and a triangle']
    """
    return tuple(shapes_record(prompt) for prompt in benchmark_prompts(num_prompts))


def shapes_record(prompt: ShapesPrompt) -> dict[str, Any]:
    """A prompt of the shapes world as a record; `tag` is its task.

    Example:
        >>> from fk_reward.shapes import parse_prompt
        >>> shapes_record(parse_prompt("a photo of a star above a circle"))["include"]
        [{'class': 'circle', 'count': 1}, {'class': 'star', 'count': 1, 'position': ['above', 0]}]
    """
    first, last = prompt.objects[0], prompt.objects[-1]
    if prompt.task == "single_object":
        return single_object_record(first.shape)
    if prompt.task == "two_object":
        return two_object_record(first.shape, last.shape)
    if prompt.task == "counting":
        return counting_record(first.shape, len(prompt.objects))
    if prompt.task == "colors":
        return color_record(first.shape, str(first.color))
    if prompt.task == "position":
        return position_record(first.shape, str(prompt.relation), last.shape)
    return color_attribution_record(_colored(first), _colored(last))


def _colored(spec: ObjectSpec) -> tuple[str, str]:
    return str(spec.color), spec.shape


class ShapesJudge:
    """Judges pictures of the shapes world by its verifier, which reads the prompt of the record.

    Args:
        strict: whether other objects than those asked for make a picture wrong.

    Example:
        >>> ShapesJudge().judge_images(shapes_records(1), [Image.new("RGB", (64, 64), "white")])[0].reason
        'no circle among: nothing'
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge pictures.

        Args:
            records: one for each picture.
            images: of any sizes.

        Raises:
            ValueError: the counts differ, or a prompt is not one of the shapes world.
        """
        if len(records) != len(images):
            raise ValueError(f"There should be a record for each of {len(images)} pictures, got {len(records)}.")
        pixels = in_order(list(images)) if images else []
        seen = [verify(image, r["prompt"], strict=self.strict) for r, image in zip(records, pixels, strict=True)]
        return [Verdict(verdict.correct, "" if verdict.correct else verdict.reason) for verdict in seen]

    def self_test(self) -> None:
        """Judge rendered scenes of each task, by a prompt that is true and by one that is not.

        Raises:
            SelfTestError: a verdict is not as it should be.
        """
        check_known_verdicts(self, [case for task in TASKS for case in _known_verdicts(task)])


def _known_verdicts(task: str) -> list[KnownVerdict]:
    prompt = all_prompts(task)[0]
    scene = sample_scene(prompt, np.random.default_rng(0))
    (image,) = pictures_of(render([scene]))
    wrong = next(other for other in all_prompts(task) if other not in true_prompts(scene))
    return [KnownVerdict(shapes_record(prompt), image, True), KnownVerdict(shapes_record(wrong), image, False)]
