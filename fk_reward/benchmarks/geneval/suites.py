"""The suites: GenEval's own prompts, or a file in their format, and those of the shapes world; each with its judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.geneval.scoring import Judge
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
    from fk_reward.benchmarks.geneval.shapes_suite import shapes_records

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
        from fk_reward.benchmarks.geneval.shapes_suite import ShapesJudge

        return ShapesJudge(), {"judge": "the verifier of the shapes world", "fk_reward": __version__}
    from fk_reward.benchmarks.geneval.colors import CLIP
    from fk_reward.benchmarks.geneval.detector import DETECTOR
    from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge

    detector, clip = models.get("detector") or DETECTOR, models.get("clip") or CLIP
    identity = {"judge": "GenEval's rules", "fk_reward": __version__, "detector": detector, "clip": clip}
    return GenEvalJudge.from_pretrained(detector, clip, device=device), identity
