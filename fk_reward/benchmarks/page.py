"""The report page: one HTML file that embeds its images and plots and loads nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from fk_reward.benchmarks.drawing import UNSTEERED
from fk_reward.benchmarks.html_page import data_uri, embedded_image, first_prompts, render_page, rendering_of
from fk_reward.benchmarks.image_results import ImageResult, RunResult
from fk_reward.benchmarks.report import Table
from fk_reward.benchmarks.statistics import OVERALL, Ends
from fk_reward.text import as_plain_text

PAGE = """{% extends "page" %}
{% block style %}
.images img { display: block; width: {{ width }}px; border: 3px solid; image-rendering: {{ rendering }}; }
.right img { border-color: #2a7d4f; }
.wrong img { border-color: #b5172f; }
.images td { max-width: {{ width + 30 }}px; font-size: 13px; }
.images small { white-space: pre-line; color: #555; }
{% endblock %}
{% block content %}
{% include "tables" %}
<h2>Accuracy against K and cost</h2>
<p>{% for name, source in plots.items() %}<img src="{{ source }}" alt="Accuracy against {{ name }}"> {% endfor %}</p>
<h2>Images</h2>
<p>The first image of the first prompts of each task: {{ num_shown }} of {{ num_prompts }} prompts. A green border
is an image that the judge calls correct.</p>
{% for task, prompts in gallery.items() %}
<h3>{{ task.replace("_", " ") }}</h3>
<div class="wide"><table class="images">
<tr><th>prompt</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for prompt, cells in prompts %}
<tr><td>{{ prompt }}</td>
{% for cell in cells %}
<td class="{{ 'right' if cell.correct else 'wrong' }}"><img src="{{ cell.source }}" alt="{{ prompt }}">
<small>{{ "correct" if cell.correct else cell.reason or "wrong" }}
{% for name, score in cell.scores.items() %}{{ name }} {{ "%.3f"|format(score) }}
{% endfor %}</small></td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>Settings</h2>
{% for name, text in manifests.items() %}
<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
{% endblock %}
"""


Row = Mapping[str, Any]
PARTICLES = "K, particles of an image"
APART = 1.04
"""Factor by which lines are shifted on the axis of K, so that their intervals do not hide one another."""


def accuracy_plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """Overall accuracy with its interval, a line for each method and reward, as PNG files.

    Args:
        rows: of `summarize`.

    Returns:
        Label of the horizontal axis -> file. A row without K, or without a cost, is left out.
    """
    by_particles = [(row, float(row["num_particles"])) for row in rows if row["num_particles"] is not None]
    by_seconds = [(row, row["cost"]["seconds"]) for row in rows if row["cost"] is not None]
    by_rows = [(row, row["cost"]["model_rows"]) for row in rows if row["cost"] is not None]
    points = {
        PARTICLES: by_particles,
        "denoiser rows of an image": by_rows,
        "seconds of an image": by_seconds,
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
    """How far the interval reaches below and above its estimate; 0 without an interval."""
    estimate, low, high = ends.values()
    if estimate is None or low is None or high is None:
        return 0.0, 0.0
    return max(0.0, estimate - low), max(0.0, high - estimate)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # no version of Matplotlib in the file
    return buffer.getvalue()


MAX_SIDE = 224
"""Images are shown at most this large, in pixels; larger ones are embedded as JPEG files of this size."""


def html_report(
    runs: Sequence[RunResult],
    rows: Sequence[Mapping[str, Any]],
    *,
    tables: Sequence[Table],
    title: str,
    facts: str,
    num_shown: int = 60,
) -> str:
    """The page.

    Args:
        runs: judged, in the order of the columns.
        rows: of `summarize`.
        tables: of `report_tables`.
        title: heading.
        facts: a sentence below it.
        num_shown: prompts whose images are shown, the same number of each task.
    """
    gallery = _gallery(runs, num_shown)
    rendering = rendering_of(runs[0].images[0].path, max_side=MAX_SIDE)
    return render_page(
        PAGE,
        title=title,
        facts=(facts,),
        tables=tables,
        plots={name: data_uri(png, "png") for name, png in accuracy_plots(rows).items()},
        gallery=gallery,
        names=[run.name for run in runs],
        num_shown=sum(map(len, gallery.values())),
        num_prompts=rows[0]["num_prompts"],
        manifests={run.name: json.dumps({**(run.manifest or {}), "judge": run.judge}, indent=2) for run in runs},
        width=128 if rendering == "pixelated" else MAX_SIDE,
        rendering=rendering,
    )


def _gallery(runs: Sequence[RunResult], num_shown: int) -> dict[str, list[tuple[str, list[dict[str, Any]]]]]:
    """Task -> prompts with a cell for each run that has the prompt's first image."""
    return {
        task: [(first.prompt, [_cell(run.by_place.get((first.index, 0), first)) for run in runs]) for first in firsts]
        for task, firsts in first_prompts(runs[0], num_shown).items()
    }


def _cell(image: ImageResult) -> dict[str, Any]:
    shown = {"correct": image.correct, "reason": image.reason, "scores": image.scores}
    return {**shown, "source": embedded_image(image.path, max_side=MAX_SIDE)}
