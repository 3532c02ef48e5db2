"""Figures of runs by hand: pairs, differences at equal K, flags; a report that pairs or names wrongly is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fk_reward.benchmarks import statistics
from fk_reward.benchmarks.image_report import report_tables
from fk_reward.benchmarks.image_results import ImageResult, RunResult, compare_methods, summarize
from fk_reward.benchmarks.report import markdown_report
from fk_reward.shapes import TASKS, benchmark_prompts

A, B = "first", "second"
PROMPTS = benchmark_prompts(12)


def image(index, correct, *, sample=0, flags=None):
    prompt = PROMPTS[index]
    return ImageResult(
        index=index,
        sample=sample,
        tag=prompt.task,
        prompt=prompt.text,
        path=Path("0000.png"),
        correct=correct,
        reason="",
        scores={A: float(index), B: 0.5},
        flags={} if flags is None else {"forbidden sign": flags},
    )


def run(method, reward, size, images):
    settings = {"method": method, "reward": reward, "search": {"num_particles": size}}
    name = method if reward is None else f"{method}-{size}-{reward}"
    figures = {} if size == 1 else {"num_ancestors": float(size), "distance": 0.1, "reward_spread": 0.02}
    return RunResult(Path(name), {"settings": settings}, {"judge": "nobody"}, tuple(images), None, figures)


def made_up_runs():
    """Best of 2 is right for the first 6 of 12 prompts (each task once), steered for all but the last."""
    return [
        run("unsteered", None, 1, [image(i, False) for i in range(12)]),
        run("best-of-n", A, 2, [image(i, i < 6) for i in range(12)]),
        run("fk", A, 2, [image(i, i < 11) for i in reversed(range(12))]),
    ]


def test_summary_by_hand():
    rows = summarize(made_up_runs())
    assert [(row["method"], row["reward"], row["num_particles"]) for row in rows] == [
        ("unsteered", None, 1),
        ("best-of-n", A, 2),
        ("fk", A, 2),
    ]
    assert [row["accuracy"]["overall"]["estimate"] for row in rows] == pytest.approx([0.0, 0.5, 11 / 12])
    assert rows[2]["accuracy"]["color_attr"]["estimate"] == 0.5
    assert [row["difference"] and row["difference"]["overall"]["estimate"] for row in rows] == [None, 0.5, 11 / 12]
    assert {name: ends["estimate"] for name, ends in rows[1]["scores"].items()} == {A: 5.5, B: 0.5}
    (row,) = compare_methods(made_up_runs())
    assert (row["run"], row["minus"]) == ("fk-2-first", "best-of-n-2-first")
    assert row["difference"]["overall"]["estimate"] == pytest.approx(5 / 12)
    assert row["difference"]["color_attr"]["estimate"] == 0.0


def test_what_is_compared_at_equal_k():
    runs = [run("unsteered", None, 1, [image(0, True)])]
    runs += [
        run(kind, name, size, [image(0, True)]) for size in (2, 4) for name in (A, B) for kind in ("best-of-n", "fk")
    ]
    named = [(row["run"], row["minus"]) for row in compare_methods(runs)]
    assert [pair for pair in named if "-4-" in pair[0]] == [
        ("fk-4-first", "best-of-n-4-first"),
        ("fk-4-second", "best-of-n-4-second"),
        ("best-of-n-4-second", "best-of-n-4-first"),
        ("fk-4-second", "fk-4-first"),
    ]
    assert len(named) == 8


def test_differences_use_common_prompts_only():
    plain, best, steered = made_up_runs()
    some = [result for result in steered.images if result.index < 6]
    (row,) = compare_methods([plain, best, run("fk", A, 2, some)])
    assert row["difference"]["overall"]["estimate"] == 0.0


def hard_and_easy():
    """12 prompts, 4 samples, two rewards: each is easy or hard; B is right on easy ones only, A's best never is."""
    easy = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.5

    def images(right):
        return [image(i, right(i, sample), sample=sample) for i in range(12) for sample in range(4)]

    runs = [run("best-of-n", A, 2, images(lambda i, sample: False))]
    runs += [run("fk", A, 2, images(lambda i, sample: bool(easy[i, sample])))]
    runs += [run(kind, B, 2, images(lambda i, sample: bool(easy[i, sample]))) for kind in ("best-of-n", "fk")]
    return runs, float(easy.float().mean())


def check_pairs(runs, rate):
    """What differs by sample alone cancels exactly; what differs by reward comes out with its sign."""
    found = {(row["run"], row["minus"]): row["difference"]["overall"] for row in compare_methods(runs)}
    same = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert found["fk-2-second", "best-of-n-2-second"] == same
    assert found["fk-2-second", "fk-2-first"] == same
    assert found["best-of-n-2-second", "best-of-n-2-first"]["estimate"] == pytest.approx(rate)


def test_differences_are_paired_by_prompt_and_sample():
    check_pairs(*hard_and_easy())


def test_runs_of_swapped_rewards_are_noticed():
    runs, rate = hard_and_easy()
    swapped = [run(r.method, {A: B, B: A}[r.reward], 2, r.images) for r in runs]
    with pytest.raises(AssertionError):
        check_pairs(swapped, rate)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0)], ids=["wrong samples", "wrong prompts"])
def test_wrong_pairs_are_noticed(monkeypatch, shift):
    def paired(first, second):
        wrong = {((index + shift[0]) % 12, (sample + shift[1]) % 4): row for (index, sample), row in second.items()}
        return [ours._replace(value=ours.value - wrong[key].value) for key, ours in first.items() if key in wrong]

    monkeypatch.setattr(statistics, "paired_differences", paired)
    with pytest.raises(AssertionError):
        check_pairs(*hard_and_easy())


def flagged_runs():
    """Unsteered shows the sign on 6 of 12 prompts twice over, steered on 2 of those; one prompt asks for it."""

    def images(shows):
        return [
            image(i, True, sample=sample, flags=None if i == 3 else shows(i)) for sample in range(20) for i in range(12)
        ]

    steered = run("fk", A, 2, images(lambda i: i in (0, 4)))
    return [run("unsteered", None, 1, images(lambda i: i % 2 == 0)), steered]


def test_flags_by_hand():
    rows = summarize(flagged_runs())
    shares = {"single_object": (1, 0.5), "counting": (1, 0), "position": (1, 0.5)}
    rates = [sum(pair[side] for pair in shares.values()) / 6 for side in (0, 1)]
    assert [row["flags"]["forbidden sign"]["estimate"] for row in rows] == pytest.approx(rates)
    ratio = rows[1]["flag_ratios"]["forbidden sign"]
    assert ratio["estimate"] == pytest.approx(rates[1] / rates[0])
    assert ratio["low"] <= rates[1] / rates[0] <= ratio["high"]
    assert rows[0]["flag_ratios"]["forbidden sign"] is None
    (table,) = [table for table in report_tables(rows) if table.title == "Flagged images"]
    assert f"{rates[0]:.3f} [" in markdown_report([table])


def test_images_without_a_flag_have_no_rate():
    rows = summarize(made_up_runs())
    assert all(row["flags"] == {} for row in rows)
    assert "Flagged images" not in [table.title for table in report_tables(rows)]


def test_no_ratio_where_the_baseline_shows_too_few():
    plain, steered = flagged_runs()
    clean = [image(i, True, sample=sample, flags=False) for sample in range(20) for i in range(12)]
    rows = summarize([run("unsteered", None, 1, clean), steered])
    assert rows[1]["flag_ratios"]["forbidden sign"] is None
    assert plain.flagged("forbidden sign")


def test_markdown_has_all_tables():
    runs = made_up_runs()
    text = markdown_report(report_tables(summarize(runs), compare_methods(runs)))
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == [
        "### Accuracy",
        "### Paired differences of accuracy to unsteered",
        "### Paired differences of accuracy at equal K",
        "### Mean rewards",
        "### Paired differences of rewards to unsteered",
        "### Populations",
    ]
    assert "| fk-2-first | best-of-n-2-first | +0.417 [" in text
    assert "| fk | first | 2 | 2.00 | 0.020 | 0.100 |" in text
    assert all(task.replace("_", " ") in text for task in TASKS)
