"""The suites by name: GenEval's prompts, a file in their format, prompts with questions, prompts of the shapes world.

To add a benchmark of images, add a line to `SUITES`: a function that makes a `Task` from records (`tag`, `prompt` and
whatever its judge reads) and a function that loads its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from fk_reward.benchmarks.geneval.official_judge import official_task
from fk_reward.benchmarks.geneval.shapes import PROMPT_LISTS, shapes_task
from fk_reward.benchmarks.questions.formats import (
    compbench_task,
    dpg_task,
    genai_task,
    geneval2_task,
    own_task,
    unigenbench_task,
)
from fk_reward.benchmarks.questions.shapes import shapes_geneval2_task
from fk_reward.benchmarks.task import Task, TaskOptions
from fk_reward.models import DEFAULT_EMBEDDED_REWARD


@dataclass(frozen=True)
class Suite:
    """A benchmark of images.

    Attributes:
        make: makes its task.
        defaults: settings of its runs, unless a preset or the user sets others.
        options: of `TaskOptions`, those that it reads.
    """

    make: Callable[[TaskOptions], Task[Mapping[str, Any]]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    def task(self, options: TaskOptions) -> Task[Mapping[str, Any]]:
        """The benchmark.

        Raises:
            ValueError: an option that it does not read, or that it cannot use.
            OSError: a file that cannot be read.
        """
        for option in fields(options):
            if option.name not in self.options and getattr(options, option.name) != option.default:
                raise ValueError(f"{_flag(option.name)} goes with the suites {', '.join(_readers(option.name))}.")
        return self.make(options)


def _readers(option: str) -> list[str]:
    return [name for name, suite in SUITES.items() if option in suite.options]


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


_SHAPES_DEFAULTS = {
    "model": "shapes-sd",
    "rewards": (DEFAULT_EMBEDDED_REWARD,),
    "num_steps": 50,
    "num_samples": 4,
    "guidance_scale": 3.0,
    "diversity": True,
}

_DEFAULTS = {"model": "sd-2.1", "num_steps": 50, "num_samples": 4}
_SHAPES_OPTIONS = ("num_prompts", "second_judge", "judge_batch_size")
_JUDGE = ("judge", "judge_url", "judge_batch_size")

SUITES: dict[str, Suite] = {
    "official": Suite(official_task, _DEFAULTS, ("prompts", "detector", "clip", "second_judge", "judge_batch_size")),
    "geneval2": Suite(geneval2_task, {**_DEFAULTS, "num_samples": 1}, ("prompts", *_JUDGE)),
    "dpg-bench": Suite(dpg_task, _DEFAULTS, ("prompts", *_JUDGE)),
    "genai-bench": Suite(genai_task, {**_DEFAULTS, "num_samples": 1}, ("prompts", "questions", *_JUDGE)),
    "unigenbench": Suite(unigenbench_task, _DEFAULTS, ("prompts", *_JUDGE)),
    "t2i-compbench": Suite(compbench_task, {**_DEFAULTS, "num_samples": 10}, ("prompts", "questions", *_JUDGE)),
    "questions": Suite(own_task, _DEFAULTS, ("prompts", "questions", *_JUDGE)),
    "shapes-geneval2": Suite(shapes_geneval2_task, _SHAPES_DEFAULTS, ("num_prompts",)),
    **{name: Suite(partial(shapes_task, name=name), _SHAPES_DEFAULTS, _SHAPES_OPTIONS) for name in PROMPT_LISTS},
}
"""Name -> suite."""


def find_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    if name not in SUITES:
        raise ValueError(f"The suite should be one of {', '.join(SUITES)}, got {name!r}.")
    return SUITES[name]
