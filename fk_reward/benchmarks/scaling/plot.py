"""The figure of a scaling run: quality against cost, with the curves of best of N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fk_reward.benchmarks.drawing import BEST
from fk_reward.benchmarks.scaling.points import best_of_n_curves
from fk_reward.text import as_plain_text, shortened

_QUALITIES = {"own": "own reward, sd within a prompt", "judge": "share correct by the judge"}
_GRAY = "#7d8590"


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
    rewards = list(dict.fromkeys(row["reward"] for row in priced))
    qualities = [name for name in _QUALITIES if any(row[name] is not None for row in priced)]
    if not rewards or not qualities:
        return False
    figure = Figure(figsize=(5.2 * len(qualities), 3.6 * len(rewards)), layout="constrained")
    panels = figure.subplots(len(rewards), len(qualities), squeeze=False)
    for reward, line in zip(rewards, panels, strict=True):
        own = [row for row in priced if row["reward"] == reward]
        for quality, axes in zip(qualities, line, strict=True):
            _panel(axes, [row for row in own if row[quality] is not None], quality, prices)
            axes.set_title(as_plain_text(shortened(reward, 60)), fontsize=9)
    panels[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=150)
    return True


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], quality: str, prices: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(f"cost of an image, in plain images ({prices})", fontsize=8)
    axes.set_ylabel(_QUALITIES[quality], fontsize=8)
    for (_, num_steps), curve in best_of_n_curves(rows).items():
        _curve(axes, curve, quality, prices, label=f"{BEST}, {num_steps} steps", color=_GRAY, linestyle="--")
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != BEST):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"])
        _curve(axes, own, quality, prices, label=method)


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], quality: str, prices: str, **style: Any) -> None:
    costs = [row["prices"][prices] for row in rows]
    ends = [row[quality] for row in rows]
    values = [one["estimate"] for one in ends]
    below = [value - (value if one["low"] is None else one["low"]) for value, one in zip(values, ends, strict=True)]
    above = [(value if one["high"] is None else one["high"]) - value for value, one in zip(values, ends, strict=True)]
    axes.errorbar(costs, values, yerr=[below, above], marker="o", markersize=4, capsize=2, linewidth=1.2, **style)
