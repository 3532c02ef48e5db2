"""Accuracy against cost by hand; swapped costs, wrong pairs and a wrong front are noticed; the figure shows it all."""

from __future__ import annotations

import numpy as np
import pytest

from examples.benchmarks import shapes_cost_report
from examples.benchmarks.shapes_cost_report import (
    COLOURS,
    ONE,
    Method,
    Point,
    VariantResults,
    cost_table,
    pareto_front,
    plot_costs,
    summarize_costs,
)
from examples.benchmarks.shapes_unit_costs import UnitCosts
from tests.examples.shapes_stage import FIRST, made_up

UNITS = UnitCosts(row_seconds=0.5, decode=3.0, reward=2.0, previews={"small": 0.5})
REFERENCE = Point("slow", Method("steered", FIRST, 4))


def settings(solver, *, preview=None, final=None):
    return {"solver": solver, "preview": preview, "rewards": [FIRST], "steering": {"final_particles": final}}


def drawn(method, size, right, *, rows, decoded):
    """12 prompts, 2 seeds; right for `right(prompt, seed)`."""
    reward = None if method == "unsteered" else FIRST
    work = {"model_rows": float(rows), "decoded": float(decoded)}
    return [made_up(method, reward, size, i, right(i, s), seed=s) | work for i in range(12) for s in range(2)]


def variants():
    """Slow: one image right on 2 of 12 prompts, best of 4 on 6, steered on 9. Fast, small preview: on seed 0 only."""
    slow = drawn("unsteered", 1, lambda i, s: i < 2, rows=100, decoded=1)
    slow += drawn("best", 4, lambda i, s: i < 6, rows=400, decoded=4)
    slow += drawn("steered", 4, lambda i, s: i < 9, rows=400, decoded=20)
    fast = drawn("steered", 8, lambda i, s: s == 0, rows=150, decoded=20)
    return {
        "slow": VariantResults(settings("ddim"), slow),
        "fast": VariantResults(settings("sde", preview="small", final=2), fast[::-1]),
    }


def check_by_hand(rows):
    found = {(row["variant"], row["method"], row["num_particles"]): row for row in rows}
    costs = {key: row["cost"] for key, row in found.items()}
    assert costs == {
        ("slow", "unsteered", 1): 100 + 1 * 3,
        ("slow", "best", 4): 400 + 4 * 3 + 4 * 2,
        ("slow", "steered", 4): 400 + 20 * 3 + 20 * 2,
        ("fast", "steered", 8): 150 + 18 * 0.5 + 2 * 3 + 20 * 2,
    }
    accuracy = {key: row["overall"]["estimate"] for key, row in found.items()}
    assert list(accuracy.values()) == pytest.approx([2 / 12, 6 / 12, 9 / 12, 6 / 12])
    assert found["fast", "steered", 8]["to_reference"] == 205 / 500
    # prompts 0 to 8: right or not as seed 0 or 1, against right; prompts 9 to 11: against wrong
    changes = {key: row["difference"] and row["difference"]["overall"]["estimate"] for key, row in found.items()}
    assert changes["slow", "best", 4] == pytest.approx(-3 / 12)
    assert changes["fast", "steered", 8] == pytest.approx((-9 + 3) / 24)
    assert changes["slow", "steered", 4] is None
    assert {key: row["pareto"] for key, row in found.items()} == {
        ("slow", "unsteered", 1): True,
        ("slow", "best", 4): False,
        ("slow", "steered", 4): True,
        ("fast", "steered", 8): True,
    }


def test_rows_by_hand():
    check_by_hand(summarize_costs(variants(), UNITS, reference=REFERENCE))


def test_swapped_costs_are_noticed():
    swapped = UnitCosts(row_seconds=0.5, decode=2.0, reward=3.0, previews={"small": 0.5})
    with pytest.raises(AssertionError):
        check_by_hand(summarize_costs(variants(), swapped, reference=REFERENCE))


def test_a_final_decode_by_the_preview_is_noticed(monkeypatch):
    monkeypatch.setattr(
        shapes_cost_report,
        "method_work",
        lambda row, settings, true=shapes_cost_report.method_work: (
            true(row, settings) if settings["preview"] is None else true(row, settings | {"preview": None})
        ),
    )
    with pytest.raises(AssertionError):
        check_by_hand(summarize_costs(variants(), UNITS, reference=REFERENCE))


def check_pairs(rows):
    """Two ways that are right on the same runs, whichever these are, do not differ at all."""
    assert rows[1]["difference"]["overall"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert rows[1]["difference"]["num_results"] == 24


def alike():
    easy = np.random.default_rng(0).random((12, 2)) < 0.5
    both = [drawn("steered", 4, lambda i, s: bool(easy[i, s]), rows=100, decoded=20) for _ in range(2)]
    return {"slow": VariantResults(settings("a"), both[0]), "fast": VariantResults(settings("b"), both[1][::-1])}


def test_pairs_are_of_one_prompt_and_seed():
    check_pairs(summarize_costs(alike(), UNITS, reference=REFERENCE))


def test_shuffled_pairs_are_noticed(monkeypatch):
    def shuffled(first, second):
        others = list(second.values())
        order = np.random.default_rng(1).permutation(len(others))
        return [(ours, others[place]) for ours, place in zip(first.values(), order, strict=False)]

    monkeypatch.setattr(shapes_cost_report, "paired", shuffled)
    with pytest.raises(AssertionError):
        check_pairs(summarize_costs(alike(), UNITS, reference=REFERENCE))


def check_front(front):
    points = [(1, 0.2), (2, 0.4), (2, 0.3), (3, 0.4), (4, 0.9), (5, 0.9), (4, 0.9), (0.5, 0.1)]
    assert front(points) == [True, True, False, False, True, False, True, True]


def test_front_by_hand():
    check_front(pareto_front)


def test_a_front_of_the_dearest_and_one_that_forgets_ties_are_noticed():
    with pytest.raises(AssertionError):
        check_front(lambda points: pareto_front([(-cost, value) for cost, value in points]))
    with pytest.raises(AssertionError):
        check_front(lambda points: [not any(o[0] < p[0] and o[1] > p[1] for o in points) for p in points])


def test_without_the_reference_nothing_is_compared():
    rows = summarize_costs(variants(), UNITS, reference=Point("fast", ONE))
    assert all(row["difference"] is None and row["to_reference"] is None for row in rows)
    cells = [column.cell(row) for column in cost_table(rows).columns for row in cost_table(rows).rows]
    assert cells.count("-") == 2 * len(rows)


def test_only_common_runs_are_compared():
    found = variants()
    found["fast"] = found["fast"]._replace(records=found["fast"].records[::2])  # seed 1
    difference = summarize_costs(found, UNITS, reference=REFERENCE)[-1]["difference"]
    assert (difference["num_results"], difference["overall"]["estimate"]) == (12, pytest.approx(-9 / 12))


def test_no_results_and_previews_without_a_cost():
    with pytest.raises(ValueError, match="no results"):
        summarize_costs({"slow": VariantResults(settings("ddim"), [])}, UNITS, reference=REFERENCE)
    with pytest.raises(ValueError, match="not been timed"):
        summarize_costs(variants(), UnitCosts(row_seconds=1, decode=1, reward=1, previews={}), reference=REFERENCE)


def test_figure_has_every_point_with_its_interval():
    rows = summarize_costs(variants(), UNITS, reference=REFERENCE)
    (axes,) = plot_costs(rows).axes
    lines = {bars.get_label(): bars for bars in axes.containers}
    assert list(lines) == ["ddim, best of K", "ddim, steered", "sde, steered, preview, funnel"]
    assert lines["ddim, best of K"][0].get_xydata().tolist() == [[103, pytest.approx(1 / 6)], [420, 0.5]]
    (segment,) = lines["sde, steered, preview, funnel"][2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([rows[-1]["overall"]["low"], rows[-1]["overall"]["high"]])
    assert [text.get_text() for text in axes.texts] == ["1", "4", "4", "8→2"]
    assert [bars[0].get_color() for bars in lines.values()] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["front", *lines]
