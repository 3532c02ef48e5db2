"""How much work pictures are: rows through the denoiser, images decoded and scored; predicted, or read from results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fk_reward.benchmarks.shapes_runs import BEST, UNSTEERED, Population, ShapesSettings
from fk_reward.search.base import forecast


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was done.

    Attributes:
        model_rows: rows of the denoiser's batches; guidance doubles them.
        decodes: images decoded by the pipeline's own autoencoder.
        previews: images decoded by the preview.
        scored: images scored by the reward.
    """

    model_rows: float = 0.0
    decodes: float = 0.0
    previews: float = 0.0
    scored: float = 0.0

    def times(self, number: float) -> Work:
        """As much work several times.

        Example:
            >>> Work(model_rows=2, decodes=1).times(3)
            Work(model_rows=6, decodes=3, previews=0.0, scored=0.0)
        """
        return Work(**{field.name: getattr(self, field.name) * number for field in fields(self)})

    @classmethod
    def total(cls, parts: Iterable[Work]) -> Work:
        """All of it.

        Example:
            >>> Work.total([Work(scored=1), Work(scored=2, previews=4)])
            Work(model_rows=0.0, decodes=0.0, previews=4.0, scored=3.0)
        """
        parts = list(parts)
        return cls(**{field.name: sum((getattr(part, field.name) for part in parts), 0.0) for field in fields(cls)})


def population_work(population: Population, settings: ShapesSettings) -> Work:
    """What one population of one prompt will take.

    Args:
        population: what is to be drawn.
        settings: of the benchmark, without `stop_reward`, whose savings cannot be foreseen.
    """
    size, num_steps = population.num_particles, settings.num_steps
    rows = 2 if settings.guidance_scale > 1.0 else 1
    if population.reward is None:
        return Work(model_rows=rows * num_steps * size, decodes=size, scored=size)
    course = forecast(replace(settings.steering, num_particles=size), num_steps)
    rows *= sum(course.steps)
    return _with_decoder(rows, course.num_scored, finished=course.finished, settings=settings.to_dict())


def method_work(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Work:
    """What one returned picture took on average.

    Args:
        row: of a method, with `method`, `num_particles`, `model_rows` and `decoded` per prompt, as `method_row` makes
            it.
        settings: that the results were made with, as JSON.
    """
    size = row["num_particles"]
    if row["method"] == UNSTEERED:
        return Work(model_rows=row["model_rows"], decodes=row["decoded"])
    if row["method"] == BEST:
        return Work(model_rows=row["model_rows"], decodes=row["decoded"], scored=size)
    finished = settings["steering"]["final_particles"] or size
    return _with_decoder(row["model_rows"], row["decoded"], finished=finished, settings=settings)


def _with_decoder(model_rows: float, decoded: float, *, finished: float, settings: Mapping[str, Any]) -> Work:
    """Of a steered population: every image that is decoded is scored, and the finished ones have no preview."""
    previews = 0.0 if settings["preview"] is None else decoded - finished
    return Work(model_rows=model_rows, decodes=decoded - previews, previews=previews, scored=decoded)
