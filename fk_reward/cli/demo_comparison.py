"""The demo: the same prompts by all methods from the same starts, judged by rules, as table, figure, words, record."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fk_reward.cli.progress import PromptProgress
from fk_reward.durable_files import write_whole
from fk_reward.sampling.trace import SteeringTrace
from fk_reward.shapes import ShapesPrompt, benchmark_prompts, parse_prompt, verify
from fk_reward.terminal import TextTable, styled
from fk_reward.text import as_plain_text, shortened

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

# Of the figure, in inches.
IMAGE, GAP, CAPTION, HEADING, BLOCK_GAP, MARGIN, TITLE = 1.25, 0.1, 0.28, 0.3, 0.45, 0.25, 0.9
RIGHT, WRONG, GREY = "#2e7d32", "#c62828", "#555b63"
MAX_ROWS = 4

ONE, BEST, STEERED = "one image", "best of K", "steered"
METHODS = (ONE, BEST, STEERED)

CHOSEN_PROMPTS = tuple(
    f"a photo of {scene}"
    for scene in (
        "a triangle and a cross",
        "four circles",
        "three triangles",
        "a blue star",
        "a yellow star",
        "a blue square and a green cross",
        "a black triangle and an orange diamond",
        "a purple square and a yellow triangle",
    )
)
"""Held-out prompts of which one plain image is right every second time or less often."""

_MAX_REASONS = 5


def demo_prompts(num_prompts: int) -> tuple[ShapesPrompt, ...]:
    """Different held-out prompts: first the ones that are drawn right every second time or less often, then any.

    Args:
        num_prompts: at most 40.
    """
    chosen = [parse_prompt(text) for text in CHOSEN_PROMPTS]
    return tuple(dict.fromkeys([*chosen, *benchmark_prompts(200)]))[:num_prompts]


@dataclass(frozen=True, eq=False)
class DemoImage:
    """A finished image.

    Attributes:
        image: (3, H, W) float32 in [0, 1], on the CPU.
        reward: by the reward that chooses.
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
        images: method -> seed -> N images.
        num_particles: K of best of K.
        seconds: method -> wall clock; None for one image, which is the first of the best of K.
        trace: of the steered call of the first prompt and seed.
    """

    prompts: tuple[ShapesPrompt, ...]
    images: Mapping[str, tuple[tuple[DemoImage, ...], ...]]
    num_particles: int
    seconds: Mapping[str, float | None]
    trace: SteeringTrace

    def label(self, method: str) -> str:
        """Name of a method as shown to people: K is a number there."""
        return method.replace("K", str(self.num_particles))

    def all_images(self, method: str) -> list[DemoImage]:
        """Those of all seeds, one after the other."""
        return [image for seed in self.images[method] for image in seed]


def run_demo(
    pipe: FKSteeringPipeline,
    prompts: Sequence[ShapesPrompt],
    *,
    seeds: Sequence[int],
    num_particles: int,
    steps: int,
    arguments: Mapping[str, Any],
) -> DemoResult:
    """Draw each prompt from each seed by all methods.

    Args:
        pipe: a pipeline of the shapes world, with the search that steers.
        prompts: N different ones.
        seeds: of the starts.
        num_particles: K of best of K; the steered images may take as many sample steps.
        steps: of an image.
        arguments: further arguments of the pipeline's call.

    Returns:
        The judged images. One image is the first of the K plain ones: the same noise without any choice.
    """
    drawn: dict[str, list[list[DemoImage]]] = {method: [[] for _ in seeds] for method in METHODS}
    seconds, traces = dict.fromkeys((BEST, STEERED), 0.0), []
    for place, prompt, seed in _with_progress(pipe, prompts, seeds):
        options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "pt", **arguments}
        calls: dict[str, dict[str, Any]] = {
            BEST: {"search": "best-of-n", "num_particles": num_particles, "num_images_per_prompt": num_particles},
            STEERED: {"budget": num_particles * steps},
        }
        outputs = {}
        for method, call in calls.items():
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(seed * 1000 + prompts.index(prompt))
            outputs[method] = pipe(prompt.text, generator=generator, **options, **call)
            seconds[method] += time.perf_counter() - start
        traces.append(outputs[STEERED].trace)
        first = int((outputs[BEST].trace.selected[0] == 0).nonzero()[0])
        for method, (output, rank) in zip(
            METHODS, ((outputs[BEST], first), (outputs[BEST], 0), (outputs[STEERED], 0)), strict=True
        ):
            drawn[method][place].append(_judge(output, prompt, rank))
    images = {method: tuple(map(tuple, of_seeds)) for method, of_seeds in drawn.items()}
    return DemoResult(tuple(prompts), images, num_particles, {ONE: None, **seconds}, traces[0])


def _with_progress(
    pipe: FKSteeringPipeline, prompts: Sequence[ShapesPrompt], seeds: Sequence[int]
) -> Iterator[tuple[int, ShapesPrompt, int]]:
    progress = PromptProgress(len(prompts) * len(seeds), 0)
    with progress.watch(pipe):
        for place, seed in enumerate(seeds):
            for index, prompt in enumerate(prompts):
                with progress.prompt(place * len(prompts) + index + 1, prompt.text):
                    yield place, prompt, seed


def _judge(output: FKSteeringOutput, prompt: ShapesPrompt, rank: int) -> DemoImage:
    image = output.images[rank].float().cpu()
    verdict = verify(image, prompt)
    return DemoImage(image, float(output.rewards[0, rank]), verdict.correct, verdict.reason)


def demo_table(result: DemoResult) -> TextTable:
    """One row for each prompt and one for the whole: the verifier's mark for every seed, and the mean reward."""
    num_seeds = len(result.images[ONE])
    table = TextTable(f"Held-out prompts of the shapes world, chosen by {result.trace.reward_name}")
    table.add_column("prompt")
    for method in result.images:
        table.add_column(result.label(method), right=True)
    for index, prompt in enumerate(result.prompts):
        marks = [
            styled(*(("✓", "green") if seed[index].correct else ("✗", "red") for seed in seeds))
            for seeds in result.images.values()
        ]
        table.add_row(prompt.text, *marks, end_section=index == len(result.prompts) - 1)
    totals = [summarise(result, method) for method in result.images]
    table.add_row("right", *(f"{total['num_correct']} of {len(result.prompts) * num_seeds}" for total in totals))
    table.add_row("mean reward", *(f"{total['mean_reward']:.3f}" for total in totals))
    seconds = [total["seconds"] for total in totals]
    table.add_row("seconds", *("-" if value is None else f"{value:.0f}" for value in seconds))
    return table


def summarise(result: DemoResult, method: str) -> dict[str, Any]:
    """Mean reward, number of right images and wall clock of a method."""
    images = result.all_images(method)
    return {
        "mean_reward": sum(one.reward for one in images) / len(images),
        "num_correct": sum(one.correct for one in images),
        "seconds": result.seconds[method],
    }


def headline(result: DemoResult) -> str:
    """How often steered images are right, and whether chance would do as well, against both other methods."""
    total = summarise(result, STEERED)["num_correct"]
    counts = " ".join(_against(result, method) for method in (ONE, BEST))
    return f"Steered, {total} of {len(result.all_images(STEERED))} are right. {counts}"


def _against(result: DemoResult, method: str) -> str:
    pairs = list(zip(result.all_images(method), result.all_images(STEERED), strict=True))
    wins, losses = (sum(b.correct > a.correct for a, b in pairs), sum(a.correct > b.correct for a, b in pairs))
    p_value = sign_test(wins, losses)
    chance = "chance alone would rarely do this" if p_value < 0.05 else "chance alone could do this"
    cost = ", which cost the same" if method == BEST else ""
    return (
        f"Against {result.label(method)}{cost}: {wins} are right only when steered, {losses} only otherwise; {chance} "
        f"(sign test, p = {p_value:.2g})."
    )


def reasons(result: DemoResult) -> Iterator[str]:
    """Why the verifier says no to steered images, a line each."""
    wrong = [
        f"  {prompt.text}: {image.reason}"
        for seed in result.images[STEERED]
        for prompt, image in zip(result.prompts, seed, strict=True)
        if not image.correct
    ]
    if wrong:
        yield "What is wrong with the steered images that are not right:"
        yield from wrong[:_MAX_REASONS]
        if len(wrong) > _MAX_REASONS:
            yield f"  and {len(wrong) - _MAX_REASONS} more, in demo.json"


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
    """Everything but the pixels, as plain values; lists go over the seeds."""

    def of_method(method: str, index: int) -> dict[str, Any]:
        images = [seed[index] for seed in result.images[method]]
        return {key: [getattr(image, key) for image in images] for key in ("reward", "correct", "reason")}

    rows = [
        {"prompt": p.text, "task": p.task, "methods": {method: of_method(method, i) for method in result.images}}
        for i, p in enumerate(result.prompts)
    ]
    return {
        "search": result.trace.search,
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
        result: the images; those of the first seed are shown.
        path: a file to write as well, or None.

    Returns:
        The figure, made without pyplot.
    """
    page = _Page(len(result.prompts), len(result.images))
    figure = Figure(figsize=page.size, dpi=150, facecolor="white")
    _write(figure, (MARGIN, 0.3), f"Chosen by {shortened(result.trace.reward_name, 80)}", fontsize=12, weight="bold")
    _write(figure, (MARGIN, 0.5), "✓ ✗: the verifier, by rules. Number: the reward.", fontsize=8.5, color=GREY)
    for index, prompt in enumerate(result.prompts):
        left, top = page.corner(index)
        text = textwrap.shorten(prompt.text, 52, placeholder=" …")
        _write(figure, (left, top + 0.75 * HEADING), text, fontsize=9.5, weight="bold")
        for column, (method, seeds) in enumerate(result.images.items()):
            left, _ = page.corner(index, column)
            _draw_image(figure, (left, top + HEADING), seeds[0][index])
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
