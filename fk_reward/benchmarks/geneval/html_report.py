"""The report as one HTML file that holds its pictures and plots and asks for nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from fk_reward.benchmarks.geneval.html_template import PAGE
from fk_reward.benchmarks.geneval.layout import read_picture
from fk_reward.benchmarks.geneval.plots import accuracy_plots
from fk_reward.benchmarks.geneval.run_results import PictureResult, RunResult
from fk_reward.benchmarks.reports import Table

MAX_SIDE = 224
"""Pictures are shown at most this large, in pixels; larger ones are embedded as JPEG files of this size."""


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
        num_shown: prompts whose pictures are shown, the same number of each task.
    """
    gallery = _gallery(runs, num_shown)
    shown = [prompt for prompts in gallery.values() for prompt in prompts]
    small = read_picture(runs[0].pictures[0].path).width < MAX_SIDE
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        title=title,
        facts=facts,
        tables=tables,
        plots={name: _data_uri(png, "png") for name, png in accuracy_plots(rows).items()},
        gallery=gallery,
        names=[run.name for run in runs],
        num_shown=len(shown),
        num_prompts=rows[0]["num_prompts"],
        manifests={run.name: json.dumps({**(run.manifest or {}), "judge": run.judge}, indent=2) for run in runs},
        width=128 if small else MAX_SIDE,
        rendering="pixelated" if small else "auto",
    )


def _gallery(runs: Sequence[RunResult], num_shown: int) -> dict[str, list[tuple[str, list[dict[str, Any]]]]]:
    """Task -> prompts with a cell for each run that has the prompt's first picture."""
    firsts = [picture for picture in runs[0].pictures if picture.sample == 0]
    tasks: dict[str, list[PictureResult]] = {}
    for picture in firsts:
        tasks.setdefault(picture.tag, []).append(picture)
    of_each = max(1, num_shown // len(tasks))
    return {
        task: [(first.prompt, [_cell(run.by_place.get((first.index, 0), first)) for run in runs]) for first in some]
        for task, some in ((task, pictures[:of_each]) for task, pictures in tasks.items())
    }


def _cell(picture: PictureResult) -> dict[str, Any]:
    shown = {"correct": picture.correct, "reason": picture.reason, "scores": picture.scores}
    return {**shown, "source": embedded_picture(picture.path)}


def embedded_picture(path: Path) -> str:
    """A picture as a data URI: as it is where it is small, else as a small JPEG file.

    Raises:
        ValueError: a damaged file.
    """
    picture = read_picture(path)
    if max(picture.size) <= MAX_SIDE:
        return _data_uri(path.read_bytes(), "png")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
