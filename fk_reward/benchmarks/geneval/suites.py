"""The suites by name: GenEval's prompts, a file in their format, prompts of the shapes world.

To add a benchmark of images, add a line to `SUITES`: a function that makes a `Task` from records (`tag`, `prompt` and
whatever its judge reads) and a function that loads its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fk_reward.benchmarks.geneval.official_judge import official_task
from fk_reward.benchmarks.geneval.shapes import PROMPT_LISTS, shapes_task
from fk_reward.benchmarks.task import Task, TaskOptions
from fk_reward.models import DEFAULT_EMBEDDED_REWARD


@dataclass(frozen=True)
class Suite:
    """A benchmark of images.

    Attributes:
        task: makes it.
        defaults: settings of its runs, unless a preset or the user sets others.
    """

    task: Callable[[TaskOptions], Task[Mapping[str, Any]]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_SHAPES_DEFAULTS = {
    "model": "shapes-sd",
    "rewards": (DEFAULT_EMBEDDED_REWARD,),
    "num_steps": 50,
    "num_samples": 4,
    "guidance_scale": 3.0,
    "diversity": True,
}

SUITES: dict[str, Suite] = {
    "official": Suite(official_task, {"model": "sd-2.1", "num_steps": 50, "num_samples": 4}),
    **{name: Suite(partial(shapes_task, name=name), _SHAPES_DEFAULTS) for name in PROMPT_LISTS},
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
