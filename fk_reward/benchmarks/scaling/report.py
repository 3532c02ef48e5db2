"""The report of a scaling run: `scaling.json`, `scaling.md`, a figure for each price list, and the page of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.drawing import BEST
from fk_reward.benchmarks.gallery import write_gallery
from fk_reward.benchmarks.image_results import RunResult
from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Report, Table, interval_text, write_tables
from fk_reward.benchmarks.scaling.points import (
    ScalingPoints,
    ScalingRun,
    best_of_n_curves,
    read_scaling_runs,
    without_plain,
)
from fk_reward.benchmarks.statistics import Ends
from fk_reward.durable_files import cosmetic
from fk_reward.planning.prices import PRICES
from fk_reward.rewards.noise_bands import name_without_bands
from fk_reward.text import as_plain_text, shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUALITIES = {"own": "own reward, sd within a prompt", "judge": "share correct by the judge"}
_GRAY = "#7d8590"

_NAMES = (Column("budget"), Column("reward"), Column("method"), Column("num_steps", "steps"))


def scaling_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that have something in them, the intervals as text.

    Args:
        rows: of `ScalingPoints.rows`.
    """
    heldout = list(dict.fromkeys(name for row in rows for name in row["heldout"]))
    banded = any(row["own_difference_plain"] or row["judge_difference_plain"] for row in rows)
    quality = (
        *(Column("own", "own reward, sd [95 %]"), Column("own_difference", "minus best of N [95 %]")),
        *((Column("own_difference_plain", "minus without bands [95 %]"),) if banded else ()),
        *(
            column
            for name in heldout
            for column in (
                Column(f"heldout {name}", f"{name}, sd [95 %]"),
                Column(f"heldout_difference {name}", "minus best of N [95 %]"),
            )
        ),
    )
    judge = (
        *(Column("judge", "judge [95 %]"), Column("judge_difference", "minus best of N [95 %]")),
        *((Column("judge_difference_plain", "minus without bands [95 %]"),) if banded else ()),
        *(
            Column("judge_difference_best", "minus best of N at its best steps [95 %]"),
            Column("best_steps", "its steps"),
        ),
    )
    cost = (
        *(Column("sample_steps", style="{:.1f}"), Column("denoiser_rows", style="{:.1f}")),
        *(Column("decodes", style="{:.1f}"), Column("reward_calls", "images scored", "{:.1f}")),
        *((Column("gradients", "with a backward pass", "{:.1f}"),) if _any_gradients(rows) else ()),
        Column("seconds", style="{:.2f}"),
        *(Column(f"price {name}", f"{name}, plain images", "{:.2f}") for name in PRICES),
    )
    population = (Column("diversity", "pixel distance", "{:.3f}"), Column("num_ancestors", "ancestors left", "{:.2f}"))
    cells = [_cells(row) for row in rows]
    tables = [
        Table("Rewards, in standard deviations within a prompt above plain images", _NAMES + quality, cells),
        Table("Judge", _NAMES + judge, [cell for cell in cells if cell["judge"] is not None]),
        _table_at_equal_price(cells),
        Table("Cost of an image", _NAMES + cost, cells),
        Table("Diversity of a population", _NAMES + population, cells),
    ]
    return [table for table in tables if table.rows]


def _any_gradients(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["cost"].get("gradients") for row in rows)


def _table_at_equal_price(cells: Sequence[dict[str, Any]]) -> Table:
    """Of the runs whose price lies between two budgets of best of N."""
    pairs = [(kind, prices) for prices in PRICES for kind in _QUALITIES]
    columns = tuple(Column(f"at {kind} {prices}", f"{kind}, {prices} [95 %]") for kind, prices in pairs)
    priced = [cell for cell in cells if any(cell[f"at {kind} {prices}"] for kind, prices in pairs)]
    return Table("Minus best of N of the same price, between its budgets", _NAMES + columns, priced)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    differences = ("difference", "difference_plain")
    own, changes = ("own", "judge"), [f"{name}_{kind}" for name in ("own", "judge") for kind in differences]
    changes.append("judge_difference_best")
    return {
        **row,
        **row["cost"],
        **{name: _text(row[name], RANGE) for name in own},
        **{name: _text(row[name], CHANGE) for name in changes},
        **{f"heldout {name}": _text(ends, CHANGE) for name, ends in row["heldout"].items()},
        **{f"heldout_difference {name}": _text(ends, CHANGE) for name, ends in row["heldout_difference"].items()},
        **{f"price {name}": price for name, price in row["prices"].items()},
        **{
            f"at {kind} {name}": _text(ends, CHANGE)
            for name, found in row["price_difference"].items()
            for kind, ends in found.items()
        },
    }


def _text(ends: Ends | None, style: str) -> str | None:
    return None if ends is None else interval_text(ends, style)


def write_report(out: Path, *, num_shown: int = 24) -> Report:
    """Write the report of all runs in a folder of `fk-reward scaling`.

    A figure or a page that fails, because a font is missing, is a warning; the measurements are written.

    Args:
        out: holds a folder of runs for each budget.
        num_shown: prompts whose images the HTML page shows.

    Raises:
        FileNotFoundError: no runs.
        ValueError: images that are not judged.
    """
    points = ScalingPoints(read_scaling_runs(out))
    rows, title, facts = points.rows(), _title(points), _facts(points)
    tables = scaling_tables(rows)
    summary = {"title": title, "facts": facts, "judge": points.plain.result.judge, "rows": rows}
    files = list(write_tables(out / "scaling", title, tables, facts=(facts,), content=summary))
    for prices in PRICES:
        path = out / f"scaling-{prices}.png"
        with cosmetic(f"drawing {path}"):
            if draw_curves(without_plain(rows), prices, path):
                files.append(path)
    browsed = write_gallery(
        out, [_labelled(run) for run in points.runs], title=title, facts=(facts,), tables=tables, num_shown=num_shown
    )
    files += browsed
    return Report(title, tables, tuple(files))


def _labelled(run: ScalingRun) -> RunResult:
    """The run by a name that is its own: K and a reward alone do not name a search of a budget."""
    if run.budget is None:
        return run.result
    return replace(run.result, label=f"{run.budget}: {run.result.name}, {run.num_steps} steps")


def _title(points: ScalingPoints) -> str:
    return "Scaling, suite {name}: {model}".format(
        name=(points.plain.result.manifest or {})["suite"]["name"], model=points.plain.settings["model"]
    )


def _facts(points: ScalingPoints) -> str:
    images = points.plain.result.images
    places, texts = {image.index for image in images}, {image.prompt for image in images}
    judge = points.plain.result.judge["judge"] if points.judged else "nobody"
    return (
        f"{len(places)} prompts, of which {len(texts)} are distinct, {len(images)} images a run, judged by {judge}. "
        "Rewards are in standard deviations of plain images within a prompt, above their mean. Brackets are 95 % "
        "bootstrap intervals, clustered by the text of the prompt. The steps at which best of N is best are chosen by "
        "the judge on these same prompts, which favours it. A plain image is one that is drawn, decoded and scored."
    )


def draw_curves(rows: Sequence[Mapping[str, Any]], prices: str, path: Path) -> bool:
    """Draw one row of panels for each reward: its own value, and the judge's verdict, against the cost.

    Args:
        rows: of `ScalingPoints.rows`, without the plain images.
        prices: name of the price list of the cost.
        path: of the PNG.

    Returns:
        Whether there was anything to draw: a price of at least one reward.
    """
    priced = [row for row in rows if row["prices"].get(prices) is not None]
    rewards = list(dict.fromkeys(name_without_bands(row["reward"]) for row in priced))
    qualities = [name for name in _QUALITIES if any(row[name] is not None for row in priced)]
    if not rewards or not qualities:
        return False
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow to import)

    figure = Figure(figsize=(5.2 * len(qualities), 3.6 * len(rewards)), layout="constrained")
    panels = figure.subplots(len(rewards), len(qualities), squeeze=False)
    for reward, line in zip(rewards, panels, strict=True):
        own = [row for row in priced if name_without_bands(row["reward"]) == reward]
        for quality, axes in zip(qualities, line, strict=True):
            _panel(axes, [row for row in own if row[quality] is not None], quality, prices)
            axes.set_title(shortened(visible(reward), 60), fontsize=9)
    panels[0][0].legend(fontsize=7)
    as_plain_text(figure).savefig(path, dpi=150)
    return True


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], quality: str, prices: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(f"cost of an image, in plain images ({prices})", fontsize=8)
    axes.set_ylabel(_QUALITIES[quality], fontsize=8)
    for (_, num_steps), curve in best_of_n_curves(rows).items():
        _curve(axes, curve, quality, prices, label=f"{BEST}, {num_steps} steps", color=_GRAY, linestyle="--")
    for name in dict.fromkeys((row["method"], row["reward"]) for row in rows if row["method"] != BEST):
        own = sorted((row for row in rows if (row["method"], row["reward"]) == name), key=lambda row: row["budget"])
        method, reward = name
        _curve(axes, own, quality, prices, label=method if name_without_bands(reward) == reward else f"{method}, bands")


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], quality: str, prices: str, **style: Any) -> None:
    costs = [row["prices"][prices] for row in rows]
    ends = [row[quality] for row in rows]
    values = [one["estimate"] for one in ends]
    # an estimate can lie outside of its percentile interval, and alone it has none
    low = [0.0 if one["low"] is None else max(one["estimate"] - one["low"], 0.0) for one in ends]
    high = [0.0 if one["high"] is None else max(one["high"] - one["estimate"], 0.0) for one in ends]
    axes.errorbar(costs, values, yerr=[low, high], marker="o", markersize=4, capsize=2, linewidth=1.2, **style)
