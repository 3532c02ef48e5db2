"""Figures and tables of the shapes benchmark, by hand; a report that pairs or names wrongly is noticed."""

from __future__ import annotations

import pytest
import torch

from fk_reward.benchmarks import report, shapes_report, shapes_summary
from fk_reward.benchmarks.shapes_summary import ONE, Method, comparisons
from fk_reward.shapes import TASKS
from tests.benchmarks.shapes_stage import FIRST as A
from tests.benchmarks.shapes_stage import SECOND as B
from tests.benchmarks.shapes_stage import made_up


def made_up_records():
    """Best of 2 is right for the first 6 of 12 prompts (each task once), steered for all but the last."""
    records = [made_up("unsteered", None, 1, i, False) for i in range(12)]
    records += [made_up("best", A, 2, i, i < 6) for i in range(12)]
    return records + [made_up("steered", A, 2, i, i < 11) for i in reversed(range(12))]


def test_summary_by_hand():
    summary = shapes_summary.summarize(made_up_records(), [A])
    assert [(row["method"], row["reward"], row["num_particles"]) for row in summary["methods"]] == [
        ("unsteered", None, 1),
        ("best", A, 2),
        ("steered", A, 2),
    ]
    assert [row["overall"]["estimate"] for row in summary["methods"]] == pytest.approx([0.0, 0.5, 11 / 12])
    assert summary["methods"][2]["color_attr"]["estimate"] == 0.5
    assert summary["methods"][1]["scores"] == {A: 5.5, B: 0.5}
    against_best, *_, best_against_one = summary["differences"]
    assert (against_best["first"], against_best["second"]) == ("steered of 2 by first", "best of 2 by first")
    assert against_best["overall"]["estimate"] == pytest.approx(5 / 12)
    assert against_best["color_attr"]["estimate"] == 0.0
    assert (best_against_one["first"], best_against_one["second"]) == ("best of 2 by first", "unsteered")


def test_order_of_the_comparisons():
    methods = {Method(kind, name, 4): None for kind in ("best", "steered") for name in (A, B)} | {ONE: None}
    named = [f"{first} - {second}" for first, second in comparisons(methods, [A, B])]
    assert named == [
        "steered of 4 by first - best of 4 by first",
        "steered of 4 by second - best of 4 by second",
        "steered of 4 by second - steered of 4 by first",
        "best of 4 by second - best of 4 by first",
        "steered of 4 by second - best of 4 by first",
        "steered of 4 by first - best of 4 by second",
        "steered of 4 by first - unsteered",
        "steered of 4 by second - unsteered",
        "best of 4 by first - unsteered",
        "best of 4 by second - unsteered",
    ]


def test_differences_use_common_prompts_only():
    records = [r for r in made_up_records() if not (r["method"] == "steered" and r["prompt_index"] >= 6)]
    difference = shapes_summary.summarize(records, [A])["differences"][0]
    assert (difference["num_results"], difference["overall"]["estimate"]) == (6, 0.0)


def hard_and_easy():
    """12 prompts, 4 seeds, two rewards: each run is easy or hard; B is right on easy ones only, A's best never is."""
    easy = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    records = []
    for i in range(12):
        for seed in range(4):
            right = bool(easy[i, seed])
            records += [made_up(method, B, 2, i, right, seed=seed) for method in ("best", "steered")]
            records.append(made_up("best", A, 2, i, False, seed=seed))
            records.append(made_up("steered", A, 2, i, right, seed=seed))
    return records, float(easy.float().mean())


def check_pairs(records, rate):
    """What differs by run alone cancels exactly; what differs by reward comes out with its sign."""
    rows = shapes_summary.summarize(records, [A, B])["differences"]
    found = {(row["first"], row["second"]): row["overall"] for row in rows}
    same = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert found["steered of 2 by second", "best of 2 by second"] == same
    assert found["steered of 2 by second", "steered of 2 by first"] == same
    assert found["best of 2 by second", "best of 2 by first"]["estimate"] == pytest.approx(rate)
    assert found["steered of 2 by first", "best of 2 by second"] == same


def test_differences_are_paired_by_prompt_and_seed():
    check_pairs(*hard_and_easy())


def test_records_of_swapped_rewards_are_noticed():
    records, rate = hard_and_easy()
    swapped = [record | {"reward": {A: B, B: A}[record["reward"]]} for record in records]
    with pytest.raises(AssertionError):
        check_pairs(swapped, rate)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0)], ids=["wrong seeds", "wrong prompts"])
def test_wrong_pairs_are_noticed(monkeypatch, shift):
    def paired(first, second):
        wrong = {((index + shift[0]) % 12, (seed + shift[1]) % 4): row for (index, seed), row in second.items()}
        return [(first[key], wrong[key]) for key in first if key in wrong]

    monkeypatch.setattr(shapes_summary, "paired", paired)
    with pytest.raises(AssertionError):
        check_pairs(*hard_and_easy())


def forbidden_records():
    """One picture shows the sign on 6 of 12 prompts twice over, steered on 2 of those; one prompt asks for it."""
    records = []
    for seed in range(20):
        for i in range(12):
            asked = i == 3
            one, steered = i % 2 == 0, i in (0, 4)
            records.append(made_up("unsteered", None, 1, i, True, seed=seed, forbidden=None if asked else one))
            records.append(made_up("steered", A, 2, i, True, seed=seed, forbidden=None if asked else steered))
    return records


def test_forbidden_signs_by_hand():
    summary = shapes_summary.summarize(forbidden_records(), [A])
    unsteered, steered = summary["methods"]
    assert unsteered["num_judged"] == steered["num_judged"] == 11 * 20
    means = {"single_object": (1, 0.5), "counting": (1, 0), "position": (1, 0.5)}
    rates = [sum(pair[side] for pair in means.values()) / 6 for side in (0, 1)]
    assert [row["forbidden"]["estimate"] for row in (unsteered, steered)] == pytest.approx(rates)
    assert steered["forbidden_ratio"]["estimate"] == pytest.approx(rates[1] / rates[0])
    assert steered["forbidden_ratio"]["low"] <= rates[1] / rates[0] <= steered["forbidden_ratio"]["high"]
    assert steered["share_forbidden"] == 0.25
    (difference,) = summary["differences"]
    assert difference["forbidden"]["estimate"] == pytest.approx(rates[1] - rates[0])


def test_no_ratio_where_nothing_is_forbidden():
    records = [record | {"forbidden": record["forbidden"] and None} for record in made_up_records()]
    assert all(row["forbidden_ratio"] is None for row in shapes_summary.summarize(records, [A])["methods"])


def test_prompts_that_all_ask_for_the_sign_have_no_rate():
    records = [record | {"forbidden": None, "share_forbidden": None} for record in made_up_records()]
    summary = shapes_summary.summarize(records, [A])
    assert all(row["forbidden"] is None and row["num_judged"] == 0 for row in summary["methods"])
    assert all(row["forbidden"] is None for row in summary["differences"])
    assert "| steered | first | 2 | - | - | - | 0 |" in report.markdown_report(shapes_report.report_tables(summary))


def test_no_results_to_report():
    with pytest.raises(ValueError, match="no results"):
        shapes_summary.summarize([], [A])


def test_markdown_has_all_tables():
    summary = shapes_summary.summarize(made_up_records(), [A])
    text = report.markdown_report(shapes_report.report_tables(summary))
    assert text.count("###") == 6
    assert "| steered of 2 by first | best of 2 by first | +0.417 [" in text
    assert "| best | first | 2 | 5.500 | 0.500 |" in text
    assert all(task.replace("_", " ") in text for task in TASKS)
