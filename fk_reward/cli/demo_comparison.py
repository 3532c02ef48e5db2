"""The demo: the same prompts by all methods from the same seeds, judged by rules, as a table, a figure and a record."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fk_reward.durable_files import write_whole
from fk_reward.sampling.trace import SteeringTrace
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.shapes import ShapesPrompt, verify
from fk_reward.terminal import TextTable, styled
from fk_reward.text import as_plain_text, shortened

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

# Of the figure, in inches.
IMAGE, GAP, CAPTION, HEADING, BLOCK_GAP, MARGIN, TITLE = 1.25, 0.1, 0.28, 0.3, 0.45, 0.25, 0.9
RIGHT, WRONG, GREY = "#2e7d32", "#c62828", "#555b63"
MAX_ROWS = 6

ONE, BEST, STEERED = "one image", "best of K", "steered"
METHODS = (ONE, BEST, STEERED)

STEERING = FKSteeringConfig(
    potential="immediate", reward_scale=30.0, resample_start=0.6, resample_stop=0.9, ess_threshold=1.0
)
"""Resample late and always, by what is predicted now: chosen on training prompts (docs/shapes.md)."""


@dataclass(frozen=True, eq=False)
class DemoImage:
    """A finished image.

    Attributes:
        image: (3, H, W) float32 in [0, 1], on the CPU.
        reward: by the reward that steers.
        correct: the strict judgement of the verifier.
        reason: what the verifier says.
    """

    image: Tensor
    reward: float
    correct: bool
    reason: str


@dataclass(frozen=True, eq=False)
class DemoResult:
    """All images of a demo.

    Attributes:
        prompts: N prompts.
        images: method -> N images.
        num_particles: K.
        seconds: method -> wall clock of its call; None for one image, which is the first of the best of K.
        trace: of the steered call.
    """

    prompts: tuple[ShapesPrompt, ...]
    images: Mapping[str, tuple[DemoImage, ...]]
    num_particles: int
    seconds: Mapping[str, float | None]
    trace: SteeringTrace

    def label(self, method: str) -> str:
        """Name of a method as shown to people: K is a number there."""
        return method.replace("K", str(self.num_particles))

    @property
    def most_resampled(self) -> int:
        """Index of the prompt whose particles lost most of the first ancestors."""
        remaining = [len(self.trace.lineage(i)[0].unique()) for i in range(len(self.prompts))]
        return remaining.index(min(remaining))


def run_demo(
    pipe: FKSteeringPipeline, prompts: Sequence[ShapesPrompt], *, seed: int, arguments: Mapping[str, Any]
) -> DemoResult:
    """Draw each prompt by all methods.

    Args:
        pipe: a pipeline of the shapes world, with the settings of the sampler.
        prompts: what to draw.
        seed: particle k of prompt i starts from `seed + i * K + k`, whatever the method.
        arguments: further arguments of the pipeline's call.

    Returns:
        The judged images. One image is the first particle of best of K: the same noise without any choice.
    """
    num_particles = pipe.steering.num_particles
    texts = [prompt.text for prompt in prompts]

    def call(**options: Any) -> FKSteeringOutput:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(texts) * num_particles)]
        return pipe(texts, generator=generators, output_type="pt", **arguments, **options)

    plain = call(num_resamples=0, num_images_per_prompt=num_particles)
    steered = call()
    first = [int((slots == 0).nonzero()[0]) for slots in plain.trace.selected]
    return DemoResult(
        prompts=tuple(prompts),
        images={
            ONE: _judge(plain, prompts, first),
            BEST: _judge(plain, prompts, [0] * len(prompts)),
            STEERED: _judge(steered, prompts, [0] * len(prompts)),
        },
        num_particles=num_particles,
        seconds={ONE: None, BEST: plain.trace.seconds, STEERED: steered.trace.seconds},
        trace=steered.trace,
    )


def _judge(output: FKSteeringOutput, prompts: Sequence[ShapesPrompt], ranks: Sequence[int]) -> tuple[DemoImage, ...]:
    """The image at the given place of each prompt."""
    images = output.images.float().cpu().unflatten(0, output.rewards.shape)
    judged = []
    for index, (prompt, rank) in enumerate(zip(prompts, ranks, strict=True)):
        verdict = verify(images[index, rank], prompt)
        reward = float(output.rewards[index, rank])
        judged.append(DemoImage(images[index, rank], reward, verdict.correct, verdict.reason))
    return tuple(judged)


def demo_table(result: DemoResult) -> TextTable:
    """One row for each prompt and one for the whole: the verifier's mark and the reward of each method."""
    title = f"Held-out prompts of the shapes world, steered by {result.trace.reward_name}"
    table = TextTable(title)
    table.add_column("prompt")
    for method in result.images:
        table.add_column(result.label(method), right=True)
    for index, prompt in enumerate(result.prompts):
        cells = [images[index] for images in result.images.values()]
        marks = [styled(("✓", "green") if p.correct else ("✗", "red"), f" {p.reward:.3f}") for p in cells]
        table.add_row(prompt.text, *marks, end_section=index == len(result.prompts) - 1)
    totals = [summarise(result, method) for method in result.images]
    table.add_row("mean reward", *(f"{total['mean_reward']:.3f}" for total in totals))
    table.add_row("verifier: right", *(f"{total['num_correct']} of {len(result.prompts)}" for total in totals))
    seconds = [total["seconds"] for total in totals]
    table.add_row("seconds", *("-" if value is None else f"{value:.0f}" for value in seconds))
    return table


def summarise(result: DemoResult, method: str) -> dict[str, Any]:
    """Mean reward, number of right images and wall clock of a method."""
    images = result.images[method]
    return {
        "mean_reward": sum(p.reward for p in images) / len(images),
        "num_correct": sum(p.correct for p in images),
        "seconds": result.seconds[method],
    }


def headline(result: DemoResult, first: str = "best of K", second: str = "steered") -> str:
    """Say whether the second method did better than the first on these prompts, and whether chance would do as well.

    Args:
        result: the images.
        first: the method to beat, at the same number of model calls.
        second: the other method.
    """
    pairs = list(zip(result.images[first], result.images[second], strict=True))
    gain = sum(b.reward - a.reward for a, b in pairs) / len(pairs)
    higher = sum(b.reward > a.reward for a, b in pairs)
    wins, losses = (sum(b.correct > a.correct for a, b in pairs), sum(a.correct > b.correct for a, b in pairs))
    verdict = "helped" if wins > losses else ("hurt" if losses > wins else "made no difference")
    p_value = sign_test(wins, losses)
    chance = "Chance alone would rarely do this" if p_value < 0.05 else "Chance alone could do this"
    return (
        f"By the verifier, steering {verdict} here: of {len(pairs)} prompts, {wins} are right only with {second}, "
        f"{losses} only with {result.label(first)}. {chance} (sign test, p = {p_value:.2g}). The mean reward changed "
        f"by {gain:+.3f} (higher for {higher} of {len(pairs)})."
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test (McNemar's exact test for paired yes-no outcomes).

    Args:
        wins: pairs in which only the second is right.
        losses: pairs in which only the first is right.

    Returns:
        Probability in (0, 1] of a split at least as uneven when both are equally good.

    Example:
        >>> sign_test(3, 0), sign_test(0, 0)
        (0.25, 1.0)
    """
    total = wins + losses
    tail = sum(math.comb(total, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def to_record(result: DemoResult) -> dict[str, Any]:
    """Everything but the pixels, as plain values."""
    rows = [
        {
            "prompt": prompt.text,
            "task": prompt.task,
            "methods": {
                method: {"reward": p[index].reward, "correct": p[index].correct, "reason": p[index].reason}
                for method, p in result.images.items()
            },
        }
        for index, prompt in enumerate(result.prompts)
    ]
    return {
        "config": result.trace.config,
        "headline": headline(result),
        "summary": {method: summarise(result, method) for method in result.images},
        "rows": rows,
    }


@dataclass(frozen=True)
class _Page:
    """Sizes in inches, measured from the upper left corner."""

    num_prompts: int
    num_methods: int

    @property
    def num_blocks(self) -> int:
        return math.ceil(self.num_prompts / MAX_ROWS)

    @property
    def num_rows(self) -> int:
        return math.ceil(self.num_prompts / self.num_blocks)

    @property
    def block(self) -> float:
        """Width of a block of columns, one for each method."""
        return self.num_methods * (IMAGE + GAP) - GAP

    @property
    def size(self) -> tuple[float, float]:
        width = 2 * MARGIN + self.num_blocks * (self.block + BLOCK_GAP) - BLOCK_GAP
        return width, MARGIN + TITLE + self.num_rows * (HEADING + IMAGE + CAPTION + GAP)

    def corner(self, index: int, column: int = 0) -> tuple[float, float]:
        """Left and top of what belongs to a prompt, in the column of a method."""
        left = MARGIN + (index // self.num_rows) * (self.block + BLOCK_GAP) + column * (IMAGE + GAP)
        return left, TITLE + (index % self.num_rows) * (HEADING + IMAGE + CAPTION + GAP)


def draw_demo(result: DemoResult, path: Path | None = None) -> Figure:
    """Draw the images, with the verifier's mark and the reward under each.

    Args:
        result: the images.
        path: a file to write as well, or None.

    Returns:
        The figure, made without pyplot.
    """
    page = _Page(len(result.prompts), len(result.images))
    figure = Figure(figsize=page.size, dpi=150, facecolor="white")
    _write(figure, (MARGIN, 0.3), f"Steered by {shortened(result.trace.reward_name, 80)}", fontsize=12, weight="bold")
    _write(figure, (MARGIN, 0.5), "✓ ✗: the verifier, by rules. Number: the reward.", fontsize=8.5, color=GREY)
    for index, prompt in enumerate(result.prompts):
        left, top = page.corner(index)
        text = textwrap.shorten(prompt.text, 52, placeholder=" …")
        _write(figure, (left, top + 0.75 * HEADING), text, fontsize=9.5, weight="bold")
        for column, (method, images) in enumerate(result.images.items()):
            left, _ = page.corner(index, column)
            _draw_image(figure, (left, top + HEADING), images[index])
            if index % page.num_rows == 0:
                place = (left + IMAGE / 2, TITLE - 0.12)
                _write(figure, place, result.label(method), fontsize=9, ha="center", color=GREY)
    as_plain_text(figure)
    if path is not None:
        write_whole(path, partial(figure.savefig, format=path.suffix[1:] or None))
    return figure


def _write(figure: Figure, place: tuple[float, float], text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(place[0] / width, 1 - place[1] / height, text, **style)


def _draw_image(figure: Figure, corner: tuple[float, float], image: DemoImage) -> None:
    (left, top), (width, height) = corner, figure.get_size_inches()
    axes = figure.add_axes((left / width, 1 - (top + IMAGE) / height, IMAGE / width, IMAGE / height))
    axes.imshow(image.image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    color = RIGHT if image.correct else WRONG
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1.6)
    caption = f"{'✓' if image.correct else '✗'} {image.reward:.3f}"
    axes.text(0.5, -0.05, caption, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=color)
