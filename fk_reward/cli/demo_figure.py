"""The figure of the demo: the images of one seed by all methods, with the verifier's mark and the reward."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fk_reward.cli.demo_comparison import DemoImage, DemoResult
from fk_reward.durable_files import write_whole
from fk_reward.text import as_plain_text, shortened

# In inches.
IMAGE, GAP, CAPTION, HEADING, BLOCK_GAP, MARGIN, TITLE = 1.25, 0.1, 0.28, 0.3, 0.45, 0.25, 0.9
RIGHT, WRONG, GREY = "#2e7d32", "#c62828", "#555b63"
MAX_ROWS = 4


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
