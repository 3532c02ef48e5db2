"""The report of a scaling run: `scaling.json`, `scaling.md`, and a figure for each price list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.report import CHANGE, RANGE, Column, Report, Table, markdown_report
from fk_reward.benchmarks.scaling.points import ScalingPoints, read_scaling_runs, without_plain
from fk_reward.benchmarks.statistics import Ends
from fk_reward.durable_files import cosmetic, write_whole
from fk_reward.planning.prices import PRICES
from fk_reward.text import markdown_text

_NAMES = (Column("budget"), Column("reward"), Column("method"), Column("num_steps", "steps"))


def scaling_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables that have something in them, the intervals as text.

    Args:
        rows: of `ScalingPoints.rows`.
    """
    heldout = list(dict.fromkeys(name for row in rows for name in row["heldout"]))
    quality = (
        *(Column("own", "own reward, sd [95 %]"), Column("own_difference", "minus best of N [95 %]")),
        *(Column(f"heldout {name}", f"{name}, sd [95 %]") for name in heldout),
    )
    judge = (
        *(Column("judge", "judge [95 %]"), Column("judge_difference", "minus best of N [95 %]")),
        *(
            Column("judge_difference_best", "minus best of N at its best steps [95 %]"),
            Column("best_steps", "its steps"),
        ),
    )
    cost = (
        *(Column("sample_steps", style="{:.1f}"), Column("denoiser_rows", style="{:.1f}")),
        *(Column("decodes", style="{:.1f}"), Column("reward_calls", "images scored", "{:.1f}")),
        Column("seconds", style="{:.2f}"),
        *(Column(f"price {name}", f"{name}, plain images", "{:.2f}") for name in PRICES),
    )
    population = (Column("diversity", "pixel distance", "{:.3f}"), Column("num_ancestors", "ancestors left", "{:.2f}"))
    cells = [_cells(row) for row in rows]
    tables = [
        Table("Rewards, in standard deviations within a prompt above plain images", _NAMES + quality, cells),
        Table("Judge", _NAMES + judge, [cell for cell in cells if cell["judge"] is not None]),
        Table("Cost of an image", _NAMES + cost, cells),
        Table("Diversity of a population", _NAMES + population, cells),
    ]
    return [table for table in tables if table.rows]


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    own, changes = ("own", "judge"), ("own_difference", "judge_difference", "judge_difference_best")
    return {
        **row,
        **row["cost"],
        **{name: _text(row[name], RANGE) for name in own},
        **{name: _text(row[name], CHANGE) for name in changes},
        **{f"heldout {name}": _text(ends, CHANGE) for name, ends in row["heldout"].items()},
        **{f"price {name}": price for name, price in row["prices"].items()},
    }


def _text(ends: Ends | None, style: str) -> str | None:
    if ends is None:
        return None
    estimate, low, high = ends.values()
    return style.split()[0].format(estimate) if low is None or high is None else style.format(estimate, low, high)


def write_report(out: Path) -> Report:
    """Write the report of all runs in a folder of `fk-reward scaling`.

    A figure that fails, because matplotlib is not there, is a warning; the measurements are written.

    Args:
        out: holds a folder of runs for each budget.

    Raises:
        FileNotFoundError: no runs.
        ValueError: images that are not judged.
    """
    points = ScalingPoints(read_scaling_runs(out))
    rows, title, facts = points.rows(), _title(points), _facts(points)
    tables = scaling_tables(rows)
    files = [out / "scaling.json", out / "scaling.md"]
    summary = {"title": title, "facts": facts, "judge": points.plain.result.judge, "rows": rows}
    write_whole(files[0], json.dumps(summary, indent=2) + "\n")
    write_whole(files[1], f"# {markdown_text(title)}\n\n{markdown_text(facts)}\n\n{markdown_report(tables)}")
    for prices in PRICES:
        path = out / f"scaling-{prices}.png"
        with cosmetic(f"drawing {path}"):
            from fk_reward.benchmarks.scaling.plot import draw_curves  # noqa: PLC0415 (matplotlib is an extra)

            if draw_curves(without_plain(rows), prices, path):
                files.append(path)
    return Report(title, tables, tuple(files))


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
