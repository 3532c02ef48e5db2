"""Accuracy against cost: a row for each variant, method and K, paired with a reference; which ones are the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Table
from fk_reward.benchmarks.shapes_summary import (
    ONE,
    Method,
    Record,
    Results,
    difference_row,
    method_row,
    results_by_method,
)
from fk_reward.benchmarks.shapes_unit_costs import UnitCosts
from fk_reward.benchmarks.shapes_work import method_work

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
        picture, `cost` in rows of the denoiser, and

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
    return Table("Accuracy against cost of a returned picture", COLUMNS, [_with_texts(row) for row in rows])


def _with_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {"accuracy": RANGE.format(*row["overall"].values()), "front": "*" if row["pareto"] else ""}
    if row["difference"] is not None:
        texts["change"] = CHANGE.format(*row["difference"]["overall"].values())
    return {**row, **texts}
