"""The figure of a trace: who descended from whom, with the curves of reward and effective sample size below.

Everything is placed in inches, so that thumbnails keep their shape and the panels below stand under the columns. The
border (or dot) of a particle shows its reward; the red line is the descent of the best image.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fk_reward.text import as_plain_text, shortened, visible

ACCENT, RETURNED, ALIVE, DEAD, BLUE = "#b5172f", "#e58a7b", "#7d8590", "#dcdfe3", "#33658a"
LINE_STYLES = {"dead": (DEAD, 0.9), "alive": (ALIVE, 1.1), "returned": (RETURNED, 1.8), "best": (ACCENT, 2.8)}
CMAP = "viridis"
TITLE_LENGTH, NAME_LENGTH = 400, 120
"""Characters of a prompt and of a reward's name that are drawn: a title of thousands has no room on any screen."""
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_BOTTOM = 0.85, 1.85, 0.6
PANEL_HEIGHT, PANEL_GAP, HEADER = 1.15, 0.22, 0.5
NARROW = 0.7


@dataclass(frozen=True)
class _Scene:
    """One prompt of a trace, with the sizes of its drawing in inches. S steps, K particles."""

    trace: Any
    prompt_index: int

    @cached_property
    def rewards(self) -> list[np.ndarray]:
        """(K,) of each step."""
        return [step.rewards[self.prompt_index].numpy() for step in self.trace.steps]

    @property
    def num_rows(self) -> int:
        """The largest number of particles."""
        return max(map(len, self.rewards))

    @cached_property
    def parents(self) -> list[list[int]]:
        """[s][k]: the slot in column s from which particle k of column s + 1 continues."""
        drawn = [(step.ancestors, torch.arange(step.num_particles)) for step in self.trace.steps[:-1]]
        return [(slots if a is None else a[self.prompt_index]).tolist() for a, slots in drawn]

    @cached_property
    def places(self) -> dict[int, int]:
        """Slot of each returned image -> its place, 1 for the best."""
        slots = self.trace.selected[self.prompt_index].tolist()
        return {slot: place for place, slot in reversed(list(enumerate(slots, start=1)))}

    @cached_property
    def classes(self) -> list[list[str]]:
        """[s][k]: the best fate among the descendants of particle k of step s, a key of `LINE_STYLES`."""
        classes = [["dead"] * step.num_particles for step in self.trace.steps]
        order = list(LINE_STYLES)
        for slots, row in zip(self.trace.lineage(self.prompt_index).tolist(), classes, strict=True):
            for final_slot, slot in enumerate(slots):
                fate = {None: "alive", 1: "best"}.get(self.places.get(final_slot), "returned")
                row[slot] = max(row[slot], fate, key=order.index)
        return classes

    @cached_property
    def norm(self) -> Normalize:
        """Rewards to [0, 1]; equal rewards stand in the middle."""
        everything = np.concatenate(self.rewards)
        finite = everything[np.isfinite(everything)]  # -inf, which forbids an image, gets the lowest colour
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        pad = 0.0 if high > low else max(abs(high), 1.0) * 1e-3
        return Normalize(low - pad, high + pad)

    @property
    def cell(self) -> float:
        """Height of a row: smaller for many particles or steps, so that the figure fits on a screen."""
        tallest = 0.55 if all(step.thumbnails is None for step in self.trace.steps) else 0.95
        return max(0.34, min(tallest, 7.2 / self.num_rows, 10.5 / len(self.trace.steps)))

    @property
    def pitch(self) -> float:
        """Distance of two columns."""
        return max(self.cell * 1.35, min(1.6, 10.5 / len(self.trace.steps)))

    @property
    def width(self) -> float:
        """Width of the axes; few columns keep room for the title."""
        return max(self.pitch * len(self.trace.steps), 3.6)

    @property
    def horizontal_limits(self) -> tuple[float, float]:
        """Columns stand at 0, 1, ...; spare width goes to both sides alike."""
        centre, half = (len(self.trace.steps) - 1) / 2, self.width / self.pitch / 2
        return centre - half, centre + half

    def extent(self, column: int, slot: int, pixels: np.ndarray) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of a thumbnail, which keeps the shape of its image."""
        side = 0.4 * self.cell / max(pixels.shape[:2])
        half_width, half_height = side * pixels.shape[1] / self.pitch, side * pixels.shape[0] / self.cell
        return column - half_width, column + half_width, slot + half_height, slot - half_height


def plot_trace(trace: Any, prompt_index: int = 0) -> Figure:
    """Draw one prompt of a trace.

    Args:
        trace: a `SteeringTrace`. (Its module imports this one.)
        prompt_index: which prompt.

    Returns:
        A figure with four axes, labelled "lineage", "reward", "ess" and "colorbar". It is made without
        pyplot, so nothing global changes and no display is needed.
    """
    scene = _Scene(trace, prompt_index)
    prompt = shortened(visible(trace.prompts[prompt_index]), TITLE_LENGTH)
    title = textwrap.fill(f"“{prompt}”", max(28, int(10 * scene.width)))
    figure, axes = _make_axes(scene, title)
    _draw_lines(axes["lineage"], scene)
    _draw_particles(axes["lineage"], scene)
    _draw_labels(axes["lineage"], scene)
    _draw_rewards(axes["reward"], scene)
    _draw_ess(axes["ess"], scene)
    _draw_colorbar(axes["colorbar"], scene)
    return as_plain_text(figure)


def _make_axes(scene: _Scene, title: str) -> tuple[Figure, dict[str, Axes]]:
    lineage_height = scene.cell * scene.num_rows
    panels = 2 * (PANEL_HEIGHT + PANEL_GAP)
    title_height = 0.16 + 0.21 * (title.count("\n") + 1)
    height = MARGIN_BOTTOM + panels + lineage_height + HEADER + title_height
    width = MARGIN_LEFT + scene.width + MARGIN_RIGHT
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    figure.text(MARGIN_LEFT / width, 1 - 0.16 / height, title, va="top", fontsize=11, weight="bold")

    def add(name: str, left: float, bottom: float, size: tuple[float, float]) -> Axes:
        rectangle = (left / width, bottom / height, size[0] / width, size[1] / height)
        return figure.add_axes(rectangle, label=name)

    base = MARGIN_BOTTOM + panels
    bar_height = min(lineage_height, 2.4)
    bar_bottom = base + (lineage_height - bar_height) / 2
    return figure, {
        "lineage": add("lineage", MARGIN_LEFT, base, (scene.width, lineage_height)),
        "reward": add("reward", MARGIN_LEFT, base - PANEL_GAP - PANEL_HEIGHT, (scene.width, PANEL_HEIGHT)),
        "ess": add("ess", MARGIN_LEFT, MARGIN_BOTTOM, (scene.width, PANEL_HEIGHT)),
        "colorbar": add("colorbar", width - 0.75, bar_bottom, (0.13, bar_height)),
    }


def _draw_lines(axes: Axes, scene: _Scene) -> None:
    """One curve from each particle to its ancestor in the column before, grouped by fate, the best on top."""
    segments: dict[str, list[np.ndarray]] = {label: [] for label in LINE_STYLES}
    for column, (parents, labels) in enumerate(zip(scene.parents, scene.classes[1:], strict=True)):
        for slot, (parent, label) in enumerate(zip(parents, labels, strict=True)):
            segments[label].append(_curve(column, parent, slot))
    for zorder, (label, (color, width)) in enumerate(LINE_STYLES.items(), start=1):
        style = {"colors": color, "linewidths": width, "capstyle": "round"}
        lines = LineCollection(segments[label], zorder=zorder, label=label, **style)
        axes.add_collection(lines, autolim=False)


def _curve(column: int, start: int, end: int) -> np.ndarray:
    """(30, 2) points of a smooth step from (column, start) to (column + 1, end), flat at the ends."""
    t = np.linspace(0, 1, 30)
    rise = ((t - 0.2) / 0.6).clip(0, 1)
    return np.stack([column + t, start + (end - start) * rise * rise * (3 - 2 * rise)], axis=1)


def _draw_particles(axes: Axes, scene: _Scene) -> None:
    for column, step in enumerate(scene.trace.steps):
        colors = colormaps[CMAP](scene.norm(scene.rewards[column]))
        for slot, (color, label) in enumerate(zip(colors, scene.classes[column], strict=True)):
            dim = 0.35 if label == "dead" else 1.0
            if step.thumbnails is None:
                size = min(11.0, 30 * scene.cell)
                axes.plot(column, slot, "o", ms=size + 2, color="white", zorder=5)
                axes.plot(column, slot, "o", ms=size, color=color, alpha=dim, mec="none", zorder=6)
            else:
                pixels = step.thumbnails[scene.prompt_index, slot].permute(1, 2, 0).numpy()
                _draw_thumbnail(axes, pixels, extent=scene.extent(column, slot, pixels), color=color, dim=dim)
    axes.set_xlim(*scene.horizontal_limits)
    axes.set_ylim(scene.num_rows - 0.5, -0.5)


def _draw_thumbnail(
    axes: Axes,
    pixels: np.ndarray,
    *,
    extent: tuple[float, float, float, float],
    color: np.ndarray,
    dim: float,
) -> None:
    left, right, bottom, top = extent
    width, height = right - left, bottom - top
    axes.add_patch(Rectangle((left, top), width, height, fc="white", ec="white", lw=5.5, zorder=5))
    axes.imshow(pixels, extent=extent, aspect="auto", alpha=dim, zorder=6)
    axes.add_patch(Rectangle((left, top), width, height, fc="none", ec=(*color[:3], dim), lw=2.6, zorder=7))


def _draw_labels(axes: Axes, scene: _Scene) -> None:
    """Step numbers above the columns, particle numbers on the left, rewards and places on the right."""
    axes.set_axis_off()
    label = partial(axes.annotate, textcoords="offset points", annotation_clip=False)
    for column, step in enumerate(scene.trace.steps):
        head = "finished" if step.final else f"step {step.step}"
        note = "" if step.final else ("resampled" if scene.parents[column] != [*range(step.num_particles)] else "kept")
        if scene.pitch < NARROW:
            head, note = head.replace("step ", "").replace("finished", "end"), ""
        label(head, (column, -0.5), (0, 15), ha="center", fontsize=9)
        label(note, (column, -0.5), (0, 5), ha="center", fontsize=7, color=ALIVE)
    font, edge = (8.5 if scene.cell > 0.4 else 7), 0.5 * scene.cell / scene.pitch
    for slot, reward in enumerate(scene.rewards[-1]):
        place = scene.places.get(slot)
        text = _number(reward) + {None: "", 1: "  ★ best"}.get(place, f"  no. {place}")
        style: dict[str, Any] = {"color": ACCENT if place else "black", "weight": "bold" if place == 1 else "normal"}
        label(text, (len(scene.trace.steps) - 1 + edge, slot), (4, 0), va="center", fontsize=font, **style)
    for slot in range(len(scene.rewards[0])):
        label(str(slot), (-edge, slot), (-6, 0), va="center", ha="right", fontsize=font, color=ALIVE)


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"


def _draw_rewards(axes: Axes, scene: _Scene) -> None:
    """Each particle faint (from its ancestor's reward to its own), their mean, and the best so far."""
    columns = range(len(scene.trace.steps))
    rewards = [np.where(np.isfinite(row), row, np.nan) for row in scene.rewards]  # nothing to draw at -inf
    ends = [(s, p, k) for s, parents in enumerate(scene.parents) for k, p in enumerate(parents)]
    segments = [[(s, rewards[s][p]), (s + 1, rewards[s + 1][k])] for s, p, k in ends]
    axes.add_collection(LineCollection(segments, colors="#ccd0d5", linewidths=0.9, label="particles"))
    axes.plot(np.repeat(columns, [*map(len, rewards)]), np.concatenate(rewards), "o", ms=2.2, color="#ccd0d5")
    mean = [row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in rewards]
    axes.plot(columns, mean, color=ALIVE, lw=1.6, marker="o", ms=3, label="mean")
    best = scene.trace.best_so_far[scene.prompt_index]
    best = best.masked_fill(best.isneginf(), torch.nan)
    axes.plot(columns, best.numpy(), color=ACCENT, lw=1.8, marker="o", ms=3.5, label="best so far")
    axes.set_ylabel("reward", fontsize=9)
    axes.margins(y=0.12)
    axes.tick_params(labelbottom=False)
    _style_panel(axes, scene)


def _draw_ess(axes: Axes, scene: _Scene) -> None:
    ess = [float(step.ess[scene.prompt_index]) for step in scene.trace.steps]
    sizes, num_rows = np.array([*map(len, scene.rewards)]), scene.num_rows
    axes.plot(range(len(ess)), ess, color=BLUE, lw=1.6, marker="o", ms=3.5, label="ESS")
    threshold = scene.trace.config.get("ess_threshold")
    if threshold is not None:
        axes.plot(range(len(ess)), threshold * sizes, color=BLUE, lw=0.9, ls=(0, (4, 3)), label="threshold")
    axes.set_ylim(0, num_rows * 1.12)
    axes.set_yticks([0, num_rows / 2, num_rows])
    axes.set_ylabel("ESS", fontsize=9)
    axes.set_xlabel("scheduler step", fontsize=9)
    _style_panel(axes, scene)


def _style_panel(axes: Axes, scene: _Scene) -> None:
    axes.set_xlim(*scene.horizontal_limits)
    names = ["end" if step.final else str(step.step) for step in scene.trace.steps]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(labelsize=8, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eef0f2", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def _draw_colorbar(axes: Axes, scene: _Scene) -> None:
    bar = axes.figure.colorbar(ScalarMappable(scene.norm, CMAP), cax=axes)
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=7.5, length=2)
    axes.set_title(textwrap.fill(shortened(visible(scene.trace.reward_name), NAME_LENGTH), 14), fontsize=8)
