"""Seconds of a denoiser row, a decode and a reward call on this machine, and how many of each a method needs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from examples.benchmarks.reward_speed import Run
from examples.benchmarks.shapes_populations import BEST, UNSTEERED, Population, ShapesSettings
from fk_reward.benchmarks.timing import seconds_of
from fk_reward.rewards import Reward
from fk_reward.search.base import forecast
from fk_reward.shapes import benchmark_prompts

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline


@dataclass(frozen=True, kw_only=True)
class Work:
    """Amounts of work.

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
        """The sum of several amounts.

        Example:
            >>> Work.total([Work(scored=1), Work(scored=2, previews=4)])
            Work(model_rows=0.0, decodes=0.0, previews=4.0, scored=3.0)
        """
        parts = list(parts)
        return cls(**{field.name: sum((getattr(part, field.name) for part in parts), 0.0) for field in fields(cls)})


def population_work(population: Population, settings: ShapesSettings) -> Work:
    """Predict the work of one population of one prompt.

    Args:
        population: to be drawn.
        settings: of the benchmark, without `stop_reward`, whose savings cannot be predicted.
    """
    size, num_steps = population.num_particles, settings.num_steps
    rows = 2 if settings.guidance_scale > 1.0 else 1  # classifier-free guidance denoises the empty prompt, too
    if population.reward is None:
        return Work(model_rows=rows * num_steps * size, decodes=size, scored=size)
    expected = forecast(replace(settings.steering, num_particles=size), num_steps)
    rows *= sum(expected.steps)
    return _with_decoder(rows, expected.num_scored, finished=expected.finished, settings=settings.to_dict())


def method_work(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Work:
    """Mean work for one returned image.

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


ROW, DECODE, REWARD, PREVIEW = "denoiser row", "decode", "reward", "preview "
_PARTICLES = 4  # images of one prompt in the batch that the reward is timed on


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Costs of an image in rows of the denoiser: medians of the ratios within a round.

    Attributes:
        row_seconds: of one row, the median.
        decode: decoding by the pipeline's own autoencoder.
        reward: scoring.
        previews: decoding by a preview, by its name.
    """

    row_seconds: float
    decode: float
    reward: float
    previews: Mapping[str, float]

    @classmethod
    def of_rounds(cls, rounds: Mapping[str, Sequence[float]]) -> UnitCosts:
        """From the seconds of a row and of an image in each round.

        Example:
            >>> UnitCosts.of_rounds({"denoiser row": [1.0, 2.0], "decode": [3.0, 6.0], "reward": [1.0, 4.0]})
            UnitCosts(row_seconds=1.5, decode=3.0, reward=1.5, previews={})
        """
        ratios = {
            name: statistics.median(a / b for a, b in zip(seconds, rounds[ROW], strict=True))
            for name, seconds in rounds.items()
        }
        return cls(
            row_seconds=statistics.median(rounds[ROW]),
            decode=ratios[DECODE],
            reward=ratios[REWARD],
            previews={name.removeprefix(PREVIEW): r for name, r in ratios.items() if name.startswith(PREVIEW)},
        )

    def cost(self, work: Work, preview: str | None) -> float:
        """All of the work in rows of the denoiser.

        Args:
            work: what was done.
            preview: name of the preview that decoded `work.previews`; None without previews.

        Raises:
            ValueError: for a preview that has not been timed.

        Example:
            >>> units = UnitCosts(row_seconds=0.1, decode=3.0, reward=2.0, previews={"small": 0.5})
            >>> units.cost(Work(model_rows=100, decodes=1, previews=4, scored=5), "small")
            115.0
        """
        if preview is not None and preview not in self.previews:
            raise ValueError(
                f"The preview {preview!r} has not been timed; timed are {', '.join(self.previews) or 'none'}."
            )
        previews = 0.0 if preview is None else self.previews[preview] * work.previews
        return work.model_rows + self.decode * work.decodes + previews + self.reward * work.scored

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@torch.no_grad()
def time_units(
    pipe: FKSteeringPipeline,
    reward: Reward,
    *,
    previews: Sequence[str],
    batch_size: int,
    num_repetitions: int,
    guidance_scale: float,
) -> dict[str, list[float]]:
    """Seconds of a row of the denoiser and of each way to treat an image, one after the other in each round.

    All are timed at the size of batch at which the benchmark runs them: `batch_size` images, four of a prompt, and
    the denoiser with both of guidance's rows for each. The order is reversed from round to round. The text encoder, the
    scheduler's arithmetic, weights and resampling are left out.

    Args:
        pipe: of the benchmark.
        reward: that steers.
        previews: names of the previews to time.
        batch_size: images.
        num_repetitions: rounds.
        guidance_scale: of classifier-free guidance.

    Returns:
        Name of what was timed -> seconds of each round.
    """
    runs = _runs(pipe, reward, previews=previews, batch_size=batch_size, guidance_scale=guidance_scale)
    for run, _ in runs.values():
        run()  # warms up
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(num_repetitions):
        for name in list(runs) if index % 2 == 0 else reversed(list(runs)):
            run, number = runs[name]
            rounds[name].append(seconds_of(run) / number)
    return rounds


def _runs(
    pipe: FKSteeringPipeline, reward: Reward, *, previews: Sequence[str], batch_size: int, guidance_scale: float
) -> dict[str, tuple[Run, int]]:
    """The timed calls, and the number of rows or images of each."""
    from fk_reward.pipelines.decoding import load_preview, preview_decoder  # noqa: PLC0415 (slow to import)

    prompts = [prompt.text for prompt in benchmark_prompts(batch_size) for _ in range(_PARTICLES)][:batch_size]
    latents, (denoise, num_rows) = _drawn(pipe, prompts, guidance_scale)
    decode = preview_decoder(None, pipe, height=None, width=None)
    images = decode(latents)
    runs: dict[str, tuple[Run, int]] = {
        ROW: (denoise, num_rows),
        DECODE: (lambda: decode(latents), batch_size),
        REWARD: (lambda: reward(images, prompts), batch_size),
    }
    for name in previews:
        small = preview_decoder(load_preview(name, pipe), pipe, height=None, width=None)
        runs[PREVIEW + name] = (lambda small=small: small(latents), batch_size)  # type: ignore[misc]
    return runs


def _drawn(pipe: FKSteeringPipeline, prompts: list[str], guidance_scale: float) -> tuple[Tensor, tuple[Run, int]]:
    """Latents of a short run `(B, C, h, w)`, and its last call of the denoiser to be repeated, with its rows."""
    from fk_reward.pipelines.batching import batch_rows  # noqa: PLC0415 (slow to import)
    from fk_reward.pipelines.hooks import main_denoiser  # noqa: PLC0415 (the same)

    denoiser = main_denoiser(pipe)
    if denoiser is None:
        raise ValueError(f"{type(pipe.pipe).__name__} has no denoiser that could be timed.")
    calls: list[tuple[Any, Any]] = []
    handle = denoiser.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    with handle:
        latents = pipe.pipe(
            prompts,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            generator=Generator(pipe.device).manual_seed(0),
            output_type="latent",
        ).images
    args, kwargs = calls[-1]
    return latents, (lambda: denoiser(*args, **kwargs), batch_rows(args, kwargs))
