"""Any file of prompts: their images are scored by rewards, and judged by nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from fk_reward.benchmarks.task import NOBODY, Task, TaskOptions, Verdict
from fk_reward.text import text_problem


class NoJudge:
    """Stands where a judge would."""

    identity: ClassVar[dict[str, Any]] = {"judge": NOBODY}

    def judge_images(self, samples: Sequence[Any], images: Sequence[Image.Image]) -> list[Verdict]:  # noqa: ARG002
        """No verdict on each image."""
        return [Verdict(False, "not judged") for _ in images]

    def self_test(self) -> None:
        """There is nothing to test."""


def plain_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """The lines of a file as prompts.

    Raises:
        ValueError: no file, no prompt in it, or one that is no text.
    """
    if options.prompts is None:
        raise ValueError("The suite prompts reads its prompts from a file, a line each: --prompts FILE.")
    prompts = _lines(options.prompts)[: options.num_prompts]
    return Task("prompts", tuple({"tag": "prompts", "prompt": prompt} for prompt in prompts), lambda device: NoJudge())


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one in each line.")
    for prompt in prompts:
        if (problem := text_problem(prompt)) is not None:
            raise ValueError(f"{path}: of a prompt: {problem}")
    return prompts
