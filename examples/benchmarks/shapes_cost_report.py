"""Tables and a plot of the cost curve on the shapes model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from examples.benchmarks.shapes_populations import BEST, STEERED, UNSTEERED
from examples.benchmarks.shapes_unit_costs import UnitCosts, method_work
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table
from fk_reward.benchmarks.statistics import clustered_bootstrap, clustered_ratio
from fk_reward.shapes import TASKS
from fk_reward.text import as_plain_text

Record: TypeAlias = Mapping[str, Any]
Pairs: TypeAlias = Sequence[tuple[Record, Record]]
Results: TypeAlias = dict[tuple[int, int], Record]
"""Results of one method, by prompt index and seed."""

Key = TypeVar("Key")

AVERAGES = ("share_correct", "distance", "reward_spread", "num_ancestors", "model_rows", "decoded", "seconds")


class Method(NamedTuple):
    """How an image was made and chosen."""

    name: str
    reward: str | None
    num_particles: int

    def __str__(self) -> str:
        """In words."""
        return self.name if self.name == UNSTEERED else f"{self.name} of {self.num_particles} by {self.reward}"


ONE = Method(UNSTEERED, None, 1)


def results_by_method(records: Sequence[Record], rewards: Sequence[str]) -> dict[Method, Results]:
    """Results by method: one image, then for each K best and steered by each reward."""
    methods: dict[Method, Results] = {}
    for record in sorted(records, key=lambda r: (r["prompt_index"], r["seed"])):
        method = Method(record["method"], record["reward"], record["num_particles"])
        methods.setdefault(method, {})[record["prompt_index"], record["seed"]] = record
    order = [ONE]
    for size in sorted({method.num_particles for method in methods}):
        order += [Method(kind, name, size) for name in rewards for kind in (BEST, STEERED)]
    return {method: methods[method] for method in order if method in methods}


def method_row(method: Method, results: Results, unsteered: Results) -> dict[str, Any]:
    """Figures of one method: accuracy with intervals, scores, averages, forbidden signs.

    Args:
        method: the method.
        results: its results, at least one.
        unsteered: those of one image, with which the rate of forbidden signs is compared; may be empty.
    """
    records = list(results.values())
    row: dict[str, Any] = {"method": method.name, "reward": method.reward, "num_particles": method.num_particles}
    row |= {"num_results": len(records)} | _by_task(records, [float(record["correct"]) for record in records])
    row["scores"] = {name: _mean([record["scores"][name] for record in records]) for name in records[0]["scores"]}
    row |= {name: _mean([record[name] for record in records]) for name in AVERAGES}
    return row | _forbidden_cells(records, paired(results, unsteered))


def difference_row(first: Key, second: Key, results: Mapping[Key, Results]) -> dict[str, Any]:
    """The first less the second, on the prompts and seeds that both have; None for intervals without any.

    Args:
        first: a key of `results`, which is shown by its `str`.
        second: the same.
        results: of each method.
    """
    pairs = paired(results[first], results[second])
    row: dict[str, Any] = {"first": str(first), "second": str(second), "num_results": len(pairs)}
    row |= _by_task([ours for ours, _ in pairs], _differences(pairs, "correct"))
    judged = _judged(pairs)
    row["forbidden"] = _interval([ours for ours, _ in judged], _differences(judged, "forbidden"))
    return row


def paired(first: Results, second: Results) -> list[tuple[Record, Record]]:
    """The results of two methods on the prompts and seeds that both have."""
    return [(first[key], second[key]) for key in first if key in second]


def _differences(pairs: Pairs, name: str) -> list[float]:
    return [float(ours[name]) - float(theirs[name]) for ours, theirs in pairs]


def _judged(pairs: Pairs) -> Pairs:
    """Those whose prompt does not ask for the forbidden sign."""
    return [pair for pair in pairs if pair[0]["forbidden"] is not None]


def _forbidden_cells(records: Sequence[Record], with_unsteered: Pairs) -> dict[str, Any]:
    """Rate of forbidden signs in the chosen images and among all K, and its ratio to that of one image."""
    ours = [record for record in records if record["forbidden"] is not None]
    return {
        "num_judged": len(ours),
        "forbidden": _interval(ours, [float(record["forbidden"]) for record in ours]),
        "share_forbidden": _mean([record["share_forbidden"] for record in ours]),
        "forbidden_ratio": _forbidden_ratio(_judged(with_unsteered)),
    }


def _forbidden_ratio(pairs: Pairs) -> dict[str, float] | None:
    """Rate of the first over that of the second; None if the second has too few."""
    if not pairs:
        return None
    ours, theirs = ([float(pair[side]["forbidden"]) for pair in pairs] for side in (0, 1))
    prompts, tasks = [pair[0]["prompt"] for pair in pairs], [pair[0]["task"] for pair in pairs]
    ratio = clustered_ratio(ours, theirs, prompts, strata=tasks)
    return None if ratio is None else vars(ratio)


def _by_task(records: Sequence[Record], values: Sequence[float]) -> dict[str, dict[str, float] | None]:
    """Interval of each task, and overall, which is the mean of the tasks."""
    intervals = {"overall": _interval(records, values)}
    for task in TASKS:
        inside = [i for i, record in enumerate(records) if record["task"] == task]
        if inside:
            intervals[task] = _interval([records[i] for i in inside], [values[i] for i in inside])
    return intervals


def _interval(records: Sequence[Record], values: Sequence[float]) -> dict[str, float] | None:
    """Clustered by distinct prompt, the tasks equally weighted; None without values."""
    if not records:
        return None
    prompts, tasks = [record["prompt"] for record in records], [record["task"] for record in records]
    return vars(clustered_bootstrap(values, prompts, strata=tasks))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


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
    """Content of a variant's folder: its settings as JSON, and its results."""

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
    """Find the points that no other one beats: at most as expensive, at least as good, and better in one of the two.

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
"""Okabe and Ito (2008): distinct with every kind of colour vision."""
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

    Each point is labelled with its K, or K→K' if the population shrinks. The grey steps are the front: the best
    accuracy that was measured at most at that cost.

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
