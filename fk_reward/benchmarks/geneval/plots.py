"""Plots of accuracy against the number of particles and against cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from fk_reward.benchmarks.geneval.run_settings import UNSTEERED
from fk_reward.benchmarks.geneval.summary import OVERALL, Ends
from fk_reward.plot_text import as_plain_text

Row = Mapping[str, Any]
PARTICLES = "K, particles of a picture"
APART = 1.04
"""Factor by which lines stand aside on the axis of K, so that their intervals do not hide one another."""


def accuracy_plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """Overall accuracy with its interval, a line for each method and reward, as PNG files.

    Args:
        rows: of `summarize`.

    Returns:
        What it is plotted against, in words, to the file. A row without K, or without a cost, is left out.
    """
    by_particles = [(row, float(row["num_particles"])) for row in rows if row["num_particles"] is not None]
    by_seconds = [(row, row["cost"]["seconds"]) for row in rows if row["cost"] is not None]
    by_rows = [(row, row["cost"]["model_rows"]) for row in rows if row["cost"] is not None]
    points = {
        PARTICLES: by_particles,
        "denoiser rows of a picture": by_rows,
        "seconds of a picture": by_seconds,
    }
    return {name: _png(_plot(name, places)) for name, places in points.items() if places}


def _plot(label: str, places: Sequence[tuple[Row, float]]) -> Figure:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[Row, float]]] = {}
    for row, x in places:
        lines.setdefault(" by ".join(filter(None, (row["method"], row["reward"]))), []).append((row, x))
    for place, (name, points) in enumerate(lines.items()):
        aside = APART ** (place - (len(lines) - 1) / 2) if label == PARTICLES else 1.0
        _draw_line(axes, name, [(row, x * aside) for row, x in points])
    if label == PARTICLES:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for _, x in places})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        axes.set_xlim(left=0.0)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, mean of the tasks")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return as_plain_text(figure)


def _draw_line(axes: Axes, name: str, points: Sequence[tuple[Row, float]]) -> None:
    ordered = sorted(points, key=lambda point: point[1])
    intervals = [row["accuracy"][OVERALL] for row, _ in ordered]
    means = [interval["estimate"] for interval in intervals]
    reach = np.transpose([_reach(interval) for interval in intervals])
    color = "black" if name == UNSTEERED else None
    line = axes.errorbar([x for _, x in ordered], means, reach, label=name, color=color, marker="o", capsize=3)
    if name == UNSTEERED:
        axes.axhline(means[0], color="black", linewidth=0.8, linestyle=":")
    for bar in line[2]:
        bar.set_alpha(0.6)


def _reach(ends: Ends) -> tuple[float, float]:
    """How far the interval goes below and above its estimate; not at all where it is not known."""
    estimate, low, high = ends.values()
    if estimate is None or low is None or high is None:
        return 0.0, 0.0
    return max(0.0, estimate - low), max(0.0, high - estimate)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
