"""The suites that a person can name: GenEval's prompts, a file in their format, prompts of the shapes world.

Another benchmark of images is one more line in `SUITES`: a function that makes a `Task` of records (`tag`, `prompt` and
whatever its judge reads) and of a function that loads its judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.geneval.shapes import PROMPT_LISTS, ShapesJudge, shapes_records
from fk_reward.benchmarks.task import Judge, Task
from fk_reward.models import DEFAULT_EMBEDDED_REWARD

OFFICIAL = "official"


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What a person may choose about a suite.

    Attributes:
        prompts: a file in GenEval's format in place of its 553 records; for the official suite.
        num_prompts: how many prompts, the tasks in turn; for the shapes world.
        detector: hub id or folder of the judge's Mask2Former; None for GenEval's own. For the official suite.
        clip: hub id or folder of the judge's CLIP, likewise.
    """

    prompts: Path | None = None
    num_prompts: int | None = None
    detector: str | None = None
    clip: str | None = None


@dataclass(frozen=True)
class Suite:
    """A benchmark of images.

    Attributes:
        task: makes it.
        defaults: settings of its runs, unless a preset or a person sets others.
    """

    task: Callable[[SuiteOptions], Task[Mapping[str, Any]]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def official_task(options: SuiteOptions) -> Task[Mapping[str, Any]]:
    """GenEval, or other records in its format, by its own judge.

    Raises:
        ValueError: an option of the other suites, or a file with records that the judge cannot judge.
    """
    from fk_reward.benchmarks.geneval.official_judge import refuse_unknown_names
    from fk_reward.benchmarks.geneval.prompts import geneval_records, read_records

    if options.num_prompts is not None:
        raise ValueError("The official suite has its 553 prompts; give a file with some of them for fewer.")
    records = geneval_records() if options.prompts is None else read_records(options.prompts)
    refuse_unknown_names(records)
    return Task(OFFICIAL, records, partial(_load_official_judge, options))


def _load_official_judge(options: SuiteOptions, device: str) -> Judge:
    from fk_reward.benchmarks.geneval.colors import CLIP
    from fk_reward.benchmarks.geneval.detector import DETECTOR
    from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge

    return GenEvalJudge.from_pretrained(options.detector or DETECTOR, options.clip or CLIP, device=device)


def shapes_task(options: SuiteOptions, *, name: str = "shapes") -> Task[Mapping[str, Any]]:
    """Prompts of the shapes world, by its verifier.

    Args:
        options: `num_prompts`, 60 by default; the smaller tasks repeat theirs.
        name: one of `PROMPT_LISTS`.

    Raises:
        ValueError: an option of the official suite.

    Example:
        >>> [record["tag"] for record in shapes_task(SuiteOptions(num_prompts=2)).samples]
        ['single_object', 'two_object']
    """
    if options.prompts is not None:
        raise ValueError("A file of prompts goes with the official suite; the shapes suites take a number of them.")
    num_prompts = 60 if options.num_prompts is None else options.num_prompts
    return Task(name, shapes_records(num_prompts, name), lambda device: ShapesJudge())


_SHAPES_DEFAULTS = {
    "model": "shapes-sd",
    "rewards": (DEFAULT_EMBEDDED_REWARD,),
    "num_steps": 50,
    "num_samples": 4,
    "guidance_scale": 3.0,
    "diversity": True,
}

SUITES: dict[str, Suite] = {
    OFFICIAL: Suite(official_task, {"model": "sd-2.1", "num_steps": 50, "num_samples": 4}),
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
