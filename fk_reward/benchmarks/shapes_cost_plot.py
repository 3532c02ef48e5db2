"""The curve: accuracy with its interval against the cost of a picture, a colour for each solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from fk_reward.benchmarks.shapes_runs import STEERED
from fk_reward.text import as_plain_text

Row = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008): told apart with every kind of colour vision."""
FRONT = "#8a8f98"
STYLES: dict[str, dict[str, Any]] = {
    "best of K": {"marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    "steered": {"marker": "o", "linestyle": "-"},
    "steered, preview": {"marker": "^", "linestyle": "-."},
    "steered, funnel": {"marker": "D", "linestyle": ":"},
    "steered, preview, funnel": {"marker": "P", "linestyle": ":"},
}
"""How pictures were chosen -> marker and line; the solver gives the colour. One picture is best of 1."""
NUMBERS: dict[str, Any] = {"fontsize": 8, "path_effects": [withStroke(linewidth=2.5, foreground="white")]}
TICKS = tuple(number * 10**power for power in range(1, 6) for number in (1, 2, 5))


def plot_costs(rows: Sequence[Row]) -> Figure:
    """Draw the rows of `summarize_costs`.

    Each point bears its K, and K→K' where the population shrinks. The grey steps are the front: the best accuracy that
    was measured at most at that cost.

    Returns:
        The figure, made without pyplot; its one axes has a line for each solver and way, in the order of the rows.
    """
    figure = Figure(figsize=(10.0, 5.6), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    _draw_front(axes, [row for row in rows if row["pareto"]])
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["solver"], _way(row)), []).append(row)
    for (solver, way), points in lines.items():
        colour = COLOURS[solvers.index(solver) % len(COLOURS)]
        _draw_line(axes, f"{solver}, {way}", sorted(points, key=lambda row: row["cost"]), colour, STYLES[way])
    _label(axes, [row["cost"] for row in rows])
    return as_plain_text(figure)


def _way(row: Row) -> str:
    if row["method"] != STEERED:
        return "best of K"
    changes = {"preview": row["preview"], "funnel": row["final_particles"]}
    return ", ".join([STEERED, *(name for name, value in changes.items() if value is not None)])


def _draw_front(axes: Axes, rows: Sequence[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row["cost"])
    costs, means = [row["cost"] for row in ordered], [row["overall"]["estimate"] for row in ordered]
    axes.step(costs, means, where="post", color=FRONT, linewidth=5, alpha=0.35, label="front", zorder=1)


def _draw_line(axes: Axes, label: str, rows: Sequence[Row], colour: str, style: Mapping[str, Any]) -> None:
    intervals = [row["overall"] for row in rows]
    costs, means = [row["cost"] for row in rows], [ends["estimate"] for ends in intervals]
    reach = np.transpose([(e["estimate"] - e["low"], e["high"] - e["estimate"]) for e in intervals]).clip(min=0.0)
    line = axes.errorbar(costs, means, reach, label=label, color=colour, capsize=2.5, elinewidth=1.0, **style)
    for bar in line[2]:
        bar.set_alpha(0.45)
    for row, cost, mean in zip(rows, costs, means, strict=True):
        finished = row["final_particles"]
        text = str(row["num_particles"]) if finished is None else f"{row['num_particles']}→{finished}"
        axes.annotate(text, (cost, mean), (5, 4), textcoords="offset points", color=colour, zorder=5, **NUMBERS)


def _label(axes: Axes, costs: Sequence[float]) -> None:
    low, high = min(costs) / 1.3, max(costs) * 1.3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("cost of a returned picture, in rows of the denoiser")
    axes.set_ylabel("accuracy, mean of the tasks, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title="numbers: K")
