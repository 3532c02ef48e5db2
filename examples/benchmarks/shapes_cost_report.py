"""Tables and a plot of the cost curve on the shapes model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from examples.benchmarks.shapes_unit_costs import UnitCosts, method_work
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table
from fk_reward.benchmarks.shapes_runs import STEERED
from fk_reward.benchmarks.shapes_summary import (
    ONE,
    Method,
    Record,
    Results,
    difference_row,
    method_row,
    results_by_method,
)
from fk_reward.text import as_plain_text

COLUMNS = (
    Column("variant"),
    Column("method"),
    Column("num_particles", "K", "{:d}"),
    Column("num_results", "results", "{:d}"),
    Column("accuracy", "accuracy [95 %]"),
    Column("model_rows", "denoiser rows", "{:.0f}"),
    Column("decodes", style="{:.0f}"),
    Column("previews", style="{:.0f}"),
    Column("scored", "rewards", "{:.0f}"),
    Column("cost", "cost, rows", "{:.0f}"),
    Column("to_reference", "cost / reference", "{:.2f}"),
    Column("change", "accuracy minus reference [95 %]"),
    Column("front"),
)


class Point(NamedTuple):
    """A method of one variant."""

    variant: str
    method: Method

    def __str__(self) -> str:
        """In words."""
        return f"{self.variant}, {self.method}"


class VariantResults(NamedTuple):
    """What a variant's folder holds: its settings as JSON, and its results."""

    settings: Mapping[str, Any]
    records: Sequence[Record]


def summarize_costs(
    variants: Mapping[str, VariantResults], units: UnitCosts, *, reference: Point
) -> list[dict[str, Any]]:
    """One row for each variant, method and K.

    Args:
        variants: results by the name of the variant, of the same prompts and seeds.
        units: what a decode, a preview and a score cost.
        reference: with which the others are compared.

    Returns:
        The cells of `method_row` (accuracy is `overall` and a key for each task), those of `Work` for one returned
        image, `cost` in rows of the denoiser, and

        - `to_reference`: ratio of the costs, None without results of the reference;
        - `difference`: `difference_row` of the accuracies, this one less the reference's, on the prompts and seeds
          that both have; None without any, and for the reference itself;
        - `pareto`: whether it is on the front, see `pareto_front`.

    Raises:
        ValueError: without results.
    """
    results = {
        Point(name, method): found
        for name, variant in variants.items()
        for method, found in results_by_method(variant.records, variant.settings["rewards"]).items()
    }
    if not results:
        raise ValueError("There are no results to report.")
    rows = [_row(point, results, variants[point.variant].settings, units) for point in results]
    costs = {point: row["cost"] for point, row in zip(results, rows, strict=True)}
    front = pareto_front([(row["cost"], row["overall"]["estimate"]) for row in rows])
    for point, row, on_front in zip(results, rows, front, strict=True):
        row["to_reference"] = row["cost"] / costs[reference] if reference in costs else None
        row["difference"] = _difference(point, reference, results)
        row["pareto"] = on_front
    return rows


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one beats: none is at most as dear and at least as good, and better in one of the two.

    Args:
        points: cost, and the estimate of what should be high.

    Example:
        >>> pareto_front([(1, 0.5), (2, 0.5), (2, 0.7), (3, 0.6)])
        [True, False, True, False]
    """

    def beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
        return other[0] <= point[0] and other[1] >= point[1] and other != point

    return [not any(beats(other, point) for other in points) for point in points]


def _row(
    point: Point, results: Mapping[Point, Results], settings: Mapping[str, Any], units: UnitCosts
) -> dict[str, Any]:
    unsteered = results.get(Point(point.variant, ONE), {})
    row = method_row(point.method, results[point], unsteered)
    work = method_work(row, settings)
    described = {"variant": point.variant, "solver": settings["solver"], "preview": settings["preview"]}
    described["final_particles"] = settings["steering"]["final_particles"]
    return described | row | asdict(work) | {"cost": units.cost(work, settings["preview"])}


def _difference(point: Point, reference: Point, results: Mapping[Point, Results]) -> dict[str, Any] | None:
    if reference not in results or point == reference:
        return None
    row = difference_row(point, reference, results)
    return row if row["num_results"] else None


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of `summarize_costs`'s rows, the intervals as text."""
    return Table("Accuracy against cost of a returned image", COLUMNS, [_with_texts(row) for row in rows])


def _with_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {"accuracy": RANGE.format(*row["overall"].values()), "front": "*" if row["pareto"] else ""}
    if row["difference"] is not None:
        texts["change"] = CHANGE.format(*row["difference"]["overall"].values())
    return {**row, **texts}


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
"""How images were chosen -> marker and line; the solver gives the colour. One image is best of 1."""
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
    axes.set_xlabel("cost of a returned image, in rows of the denoiser")
    axes.set_ylabel("accuracy, mean of the tasks, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title="numbers: K")
