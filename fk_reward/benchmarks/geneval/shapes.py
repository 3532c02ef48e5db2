"""GenEval in miniature: held-out prompts of the shapes world as records, judged by its verifier, without a download."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from fk_reward.benchmarks.geneval.prompts import (
    color_attribution_record,
    color_record,
    counting_record,
    position_record,
    single_object_record,
    two_object_record,
)
from fk_reward.benchmarks.questions.loading import second_record_judge
from fk_reward.benchmarks.task import KnownVerdict, Task, TaskOptions, Verdict, check_known_verdicts
from fk_reward.rewards.inputs import in_order, to_pil
from fk_reward.shapes import (
    FORBIDDEN_SIGN,
    TASKS,
    ObjectSpec,
    ShapesPrompt,
    all_prompts,
    benchmark_prompts,
    parse_prompt,
    render,
    sample_scene,
    sign_prompts,
    true_prompts,
    verify,
)
from fk_reward.version import __version__

PROMPT_LISTS: dict[str, Callable[[int], tuple[ShapesPrompt, ...]]] = {
    "shapes": benchmark_prompts,
    "shapes-sign": sign_prompts,
    "shapes-validation": partial(benchmark_prompts, split="validation"),
    "shapes-sign-validation": partial(sign_prompts, split="validation"),
}
"""Name of a suite -> function from a number to as many prompts, the tasks in turn. `sign`: prompts of a cross, which
may be drawn as the forbidden sign; `validation`: training prompts, for choosing settings; the others are held out."""

FLAG = "forbidden sign"
"""Flag of images that show it; images of prompts that ask for it have no such flag."""


def shapes_task(options: TaskOptions, *, name: str = "shapes") -> Task[Mapping[str, Any]]:
    """Prompts of the shapes world, by its verifier.

    Args:
        options: `num_prompts`, 60 by default; the smaller tasks repeat theirs; `second_judge`, `judge_batch_size`.
        name: one of `PROMPT_LISTS`.

    Raises:
        ValueError: an option of the official suite.

    Example:
        >>> [record["tag"] for record in shapes_task(TaskOptions(num_prompts=2)).samples]
        ['single_object', 'two_object']
    """
    if options.prompts is not None:
        raise ValueError("A file of prompts goes with the official suite; the shapes suites take a number of them.")
    num_prompts = 60 if options.num_prompts is None else options.num_prompts
    records, second = shapes_records(num_prompts, name), second_record_judge(options)
    return Task(name, records, lambda device: ShapesJudge(), second)


def shapes_records(num_prompts: int, suite: str = "shapes") -> tuple[dict[str, Any], ...]:
    """Prompts of the shapes world as records, the tasks in turn.

    Args:
        num_prompts: how many; the smaller tasks repeat theirs, see `fk_reward.shapes.benchmark_prompts`.
        suite: one of `PROMPT_LISTS`.

    Example:
        >>> [record["prompt"] for record in shapes_records(2)]
        ['a photo of a circle', 'a photo of a square and a triangle']
    """
    return tuple(shapes_record(prompt) for prompt in PROMPT_LISTS[suite](num_prompts))


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
    """Judges images of the shapes world by its verifier, which reads the prompt of the record.

    Args:
        strict: whether other objects than those asked for make an image wrong.

    Example:
        >>> ShapesJudge().judge_images(shapes_records(1), [Image.new("RGB", (64, 64), "white")])[0].reason
        'no circle among: nothing'
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.identity: dict[str, Any] = {"judge": "the verifier of the shapes world", "fk_reward": __version__}

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge images.

        Args:
            records: one for each image.
            images: of any sizes.

        Raises:
            ValueError: the counts differ, or a prompt is not one of the shapes world.
        """
        if len(records) != len(images):
            raise ValueError(f"There should be a record for each of {len(images)} images, got {len(records)}.")
        pixels = in_order(list(images)) if images else []
        prompts = [parse_prompt(record["prompt"]) for record in records]
        seen = [verify(image, prompt, strict=self.strict) for prompt, image in zip(prompts, pixels, strict=True)]
        return [
            Verdict(verdict.correct, "" if verdict.correct else verdict.reason, flags=_flags(prompt, verdict.objects))
            for prompt, verdict in zip(prompts, seen, strict=True)
        ]

    def self_test(self) -> None:
        """Judge rendered scenes of each task, by a prompt that is true and by one that is not.

        Raises:
            SelfTestError: a verdict is not as it should be.
        """
        check_known_verdicts(self, [case for task in TASKS for case in _known_verdicts(task)])


def _flags(prompt: ShapesPrompt, objects: Sequence[Any]) -> dict[str, bool]:
    """Whether the forbidden sign was seen; nothing where the prompt asks for it."""
    if FORBIDDEN_SIGN in prompt.objects:
        return {}
    return {FLAG: any((seen.shape, seen.color) == (FORBIDDEN_SIGN.shape, FORBIDDEN_SIGN.color) for seen in objects)}


def _known_verdicts(task: str) -> list[KnownVerdict]:
    prompt = all_prompts(task)[0]
    scene = sample_scene(prompt, np.random.default_rng(0))
    (image,) = to_pil(render([scene]))
    # Of the same task, but not true of the scene by chance.
    wrong = next(other for other in all_prompts(task) if other not in true_prompts(scene))
    return [KnownVerdict(shapes_record(prompt), image, True), KnownVerdict(shapes_record(wrong), image, False)]
