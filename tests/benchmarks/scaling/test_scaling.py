"""Quality against cost, from end to end with a tiny model; figures against those of the images, by hand."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.benchmarks.image_results import read_runs
from fk_reward.benchmarks.scaling.points import Scale, ScalingPoints, read_scaling_runs
from fk_reward.benchmarks.scaling.report import draw_curves
from fk_reward.benchmarks.scaling.runs import ScalingRequest, plan_scaling
from fk_reward.benchmarks.statistics import Outcome
from fk_reward.rewards import NoiseBand, load_reward
from fk_reward.rewards.noise_bands import write_band
from fk_reward.search import GradientFKConfig
from tests.command_line import run_command_line

REWARDS = ("shapes-clipscore", "0.5*shapes-clipscore + 0.5*shapes-verifier")
METHODS = ["--method", "pruning", "--method", "fk", "--reward-scale", "20"]


def run(*arguments):
    return run_command_line("scaling", *arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_sd):
    folder = tmp_path_factory.mktemp("tiny-sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def options(model):
    rewards = ["--reward", REWARDS[0], "--heldout", REWARDS[1]]
    sizes = ["--budgets", "8,16", "--baseline-steps", "2", "--num-prompts", "3", "--num-samples", "2", "--steps", "4"]
    return ["--suite", "shapes", "--model", model, "--device", "cpu", *rewards, *sizes, *METHODS]


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("scaling")
    result = run("--out", out, *options)
    assert result.exit_code == 0, result.output
    return out, result.output


def rows_of(out):
    return json.loads((out / "scaling.json").read_text())["rows"]


def test_every_method_at_every_budget(finished):
    out, output = finished
    named = {(row["budget"], row["num_steps"], row["method"]) for row in rows_of(out)}
    searches = {(budget, 4, name) for budget in (8, 16) for name in ("best-of-n", "pruning", "fk")}
    assert named == {(None, 4, "unsteered"), *searches, (8, 2, "best-of-n"), (16, 2, "best-of-n")}
    assert "3 prompts, of which" in (out / "scaling.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {
        "scaling-sample-steps.png",
        "scaling-sdxl.png",
        "scaling-flux.1-dev.png",
    }
    assert "Report: " in output


def test_the_page_of_images_tells_the_budgets_of_a_method_apart(finished):
    out, output = finished
    text = (out / "images.html").read_text(encoding="utf-8")
    assert "images.html" in output
    methods = re.search(r'<select name="method">(.*?)</select>', text, re.DOTALL)[1]
    names = re.findall(r"<option>([^<]*)</option>", methods)
    assert len(names) == len(set(names)) == len(rows_of(out)) == 9
    assert (
        names[0] == "unsteered" and sum(name.startswith("16: ") and name.endswith(", 4 steps") for name in names) == 3
    )
    assert text.count("<figure") == 9 * 3 * 2


def test_nobody_takes_more_than_the_budget(finished):
    for row in rows_of(finished[0]):
        if row["budget"] is not None:
            assert row["cost"]["sample_steps"] <= row["budget"]
            assert row["prices"]["sample-steps"] == pytest.approx(row["cost"]["sample_steps"] / 4)
            assert row["prices"]["sdxl"] > 1


def scores(out, folder, name, reward):
    (run_of,) = [one for one in read_runs(out / folder) if one.name.startswith(name)]
    return np.array([[run_of.by_place[index, sample].scores[reward] for sample in range(2)] for index in range(3)])


@pytest.mark.parametrize("reward", REWARDS)
def test_rewards_are_in_standard_deviations_within_a_prompt(finished, reward):
    out, _ = finished
    plain = scores(out, "plain", "unsteered", reward)
    spread = math.sqrt(plain.var(axis=1, ddof=1).mean())
    (row,) = [row for row in rows_of(out) if (row["budget"], row["num_steps"], row["method"]) == (16, 4, "pruning")]
    gains = (scores(out, "budget-16-steps-4", "pruning", reward) - plain.mean(1, keepdims=True)) / spread
    best = (scores(out, "budget-16-steps-4", "best", reward) - plain.mean(1, keepdims=True)) / spread
    tags = [image.tag for image in read_runs(out / "plain")[0].images if image.sample == 0]
    by_task = [gains[[i for i, tag in enumerate(tags) if tag == task]].mean() for task in dict.fromkeys(tags)]
    found = row["own"] if reward == REWARDS[0] else row["heldout"][reward]
    assert found["estimate"] == pytest.approx(np.mean(by_task))
    differences = gains - best
    expected = [differences[[i for i, tag in enumerate(tags) if tag == task]].mean() for task in dict.fromkeys(tags)]
    change = row["own_difference"] if reward == REWARDS[0] else row["heldout_difference"][reward]
    assert change["estimate"] == pytest.approx(np.mean(expected))


def test_plain_images_gain_nothing(finished):
    (row,) = [row for row in rows_of(finished[0]) if row["method"] == "unsteered"]
    assert row["own"] is None
    assert all(ends["estimate"] == pytest.approx(0, abs=1e-6) for ends in row["heldout"].values())


def test_the_baseline_is_best_of_n_at_its_best_number_of_steps(finished):
    rows = rows_of(finished[0])
    for budget in (8, 16):
        best = {
            row["num_steps"]: row["judge"]["estimate"]
            for row in rows
            if (row["budget"], row["method"]) == (budget, "best-of-n")
        }
        (row,) = [row for row in rows if (row["budget"], row["method"]) == (budget, "fk")]
        assert best[row["best_steps"]] == max(best.values())
        difference = row["judge_difference_best"]["estimate"]
        assert difference == pytest.approx(row["judge"]["estimate"] - max(best.values()), abs=1e-6)


@pytest.mark.parametrize("kind", ["own", "judge"])
def test_best_of_n_of_the_same_price_lies_between_its_budgets(finished, kind):
    """By hand from the rows, whose means are linear in the images; the price of the small budget is inside."""
    rows = rows_of(finished[0])
    best = {r["budget"]: r for r in rows if r["method"] == "best-of-n" and r["num_steps"] == 4}
    (row,) = [row for row in rows if (row["budget"], row["method"]) == (8, "fk")]
    low, high = (best[budget]["prices"]["sdxl"] for budget in (8, 16))
    assert low < row["prices"]["sdxl"] < high, "it scores on the way"
    share = math.log(row["prices"]["sdxl"] / low) / math.log(high / low)
    expected = row[kind]["estimate"] - (1 - share) * best[8][kind]["estimate"] - share * best[16][kind]["estimate"]
    assert row["price_difference"]["sdxl"][kind]["estimate"] == pytest.approx(expected)
    same = row["price_difference"]["sample-steps"][kind]
    assert same["estimate"] == pytest.approx(row[f"{kind}_difference"]["estimate"]), "as many steps cost the same"
    (dear,) = [row for row in rows if (row["budget"], row["method"]) == (16, "fk")]
    assert dear["price_difference"]["sdxl"][kind] is None, "no budget of best of N is above it"


def test_backward_passes_are_paid(model, tmp_path):
    """Of two particles and four steps one is guided by default: by hand from the counts of an image."""
    sizes = ["--budgets", "8", "--num-prompts", "2", "--num-samples", "2", "--steps", "4", "--method", "fk-gradient"]
    options = ["--suite", "shapes", "--model", model, "--device", "cpu", "--reward", REWARDS[0], *sizes]
    result = run("--out", tmp_path, *options, "--reward-scale", "20")
    assert result.exit_code == 0, result.output
    (row,) = [row for row in rows_of(tmp_path) if row["method"] == "fk-gradient"]
    cost, search = row["cost"], GradientFKConfig(num_particles=2, reward_scale=20.0)
    guided = 2 * len(search.guided_steps(4))
    assert (cost["sample_steps"], cost["gradients"]) == (8, guided) and guided > 0
    assert cost["decodes"] == cost["reward_calls"] == 2 * len(search.scoring_steps(4)) + guided + 2
    image = 10.47 + 0.1641
    paid = 8 * 13.52 + (cost["decodes"] + guided) * image
    assert row["prices"]["sdxl"] == pytest.approx(paid / (4 * 13.52 + image))
    assert "with a backward pass" in (tmp_path / "scaling.md").read_text()
    for note in tmp_path.glob("*/fk-gradient*/**/made.json"):
        told = json.loads(note.read_text())
        del told["gradients"]
        note.write_text(json.dumps(told))
    (row,) = [row for row in ScalingPoints(read_scaling_runs(tmp_path)).rows() if row["method"] == "fk-gradient"]
    assert row["prices"]["sdxl"] is None and row["prices"]["sample-steps"] == 2, "drawn before they were counted"


def test_noise_bands_are_held_against_the_same_search_without(model, tmp_path, monkeypatch):
    """With a band that judges the other way round: the baseline is drawn once, and differences are those of images."""
    against = load_reward("shapes-imagereward")
    with torch.no_grad():
        for parameter in against.model.mlp[-1].parameters():
            parameter.neg_()
    against.save_pretrained(tmp_path / "shapes-imagereward-bands")
    write_band(tmp_path / "shapes-imagereward-bands", NoiseBand(0.0, 1.0, "all"))
    monkeypatch.setattr("fk_reward.rewards.registry.ASSETS", tmp_path)
    rewards = ["--reward", "shapes-imagereward", "--reward", "shapes-imagereward@bands"]
    sizes = ["--budgets", "8", "--num-prompts", "4", "--num-samples", "2", "--steps", "4", "--method", "pruning"]
    out = tmp_path / "out"
    result = run("--out", out, "--suite", "shapes", "--model", model, "--device", "cpu", *rewards, *sizes)
    assert result.exit_code == 0, result.output
    rows = {(row["method"], row["reward"]): row for row in rows_of(out)}
    assert set(rows) == {
        ("unsteered", None), ("best-of-n", rewards[1]), ("pruning", rewards[1]), ("pruning", rewards[3])
    }  # fmt: skip
    plain, banded = rows["pruning", rewards[1]], rows["pruning", rewards[3]]
    assert plain["own_difference_plain"] is None and banded["heldout"] == {}
    difference = banded["own"]["estimate"] - plain["own"]["estimate"]
    assert difference != 0 and banded["own_difference_plain"]["estimate"] == pytest.approx(difference)
    best = rows["best-of-n", rewards[1]]["own"]["estimate"]
    assert banded["own_difference"]["estimate"] == pytest.approx(banded["own"]["estimate"] - best)
    assert "minus without bands" in (out / "scaling.md").read_text()


def test_a_finished_command_does_nothing_again(finished, options, monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("a prompt is made again")

    monkeypatch.setattr("fk_reward.benchmarks.drawing.ImageSearch._call", fail)
    monkeypatch.setattr("fk_reward.benchmarks.judging.load_reward", fail)
    before = rows_of(finished[0])
    assert run("--out", finished[0], *options).exit_code == 0
    assert rows_of(finished[0]) == before


def test_shares_of_the_work_are_those_of_one_process(finished, options, tmp_path):
    small = [*options, "--budgets", "8", "--baseline-steps", "2", "--stage", "generate"]
    for share in ("1/2", "0/2"):
        assert run("--out", tmp_path, *small, "--shard", share).exit_code == 0
    images = sorted(tmp_path.glob("budget-8-*/*/*/samples/*.png"))
    assert len(images) == 4 * 3 * 2
    assert all(path.read_bytes() == (finished[0] / path.relative_to(tmp_path)).read_bytes() for path in images)


@pytest.mark.parametrize("folder", ["budget-8-steps-4/fk-9-given-up", "budget-32-steps-4/fk-9-given-up"])
@pytest.mark.parametrize("kept", [(), ("manifest.json",)], ids=["empty", "begun"])
def test_a_run_without_images_is_left_out(finished, tmp_path, caplog, folder, kept):
    """A method that was begun, stopped before its first prompt, and then no longer asked for."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / folder).mkdir(parents=True)
    for name in kept:
        shutil.copy(next((out / "budget-8-steps-4").glob("pruning*")) / name, out / folder)
    result = run("--out", out, "--stage", "report")
    assert result.exit_code == 0, result.output
    assert rows_of(out) == rows_of(finished[0])
    assert ("given-up was begun and holds no images" in caplog.text) == bool(kept)


def test_a_single_image_of_each_prompt_is_refused_before_anything_is_drawn(tmp_path):
    result = run("--out", tmp_path / "out", "--budgets", "80", "--steps", "4", "--num-samples", "1", "--device", "cpu")
    assert result.exit_code == 2
    assert "--num-samples should be at least 2" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_prompts_of_a_file_are_judged_by_nobody(options, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red dog\n\na blue cat\n")
    few = ["--suite", "prompts", "--prompts", tmp_path / "prompts.txt", "--budgets", "8", "--method", "pruning"]
    kept = options[2 : options.index("--heldout")]
    result = run("--out", tmp_path / "out", *kept, *few, "--num-samples", "2", "--steps", "4", "--guidance-scale", "1")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out")
    assert {row["method"] for row in rows} == {"unsteered", "best-of-n", "pruning"}
    assert all(row["judge"] is None for row in rows)
    assert "Judge" not in (tmp_path / "out" / "scaling.md").read_text()
    assert "judged by nobody" in (tmp_path / "out" / "scaling.md").read_text()
    page = (tmp_path / "out" / "images.html").read_text(encoding="utf-8")
    assert page.count('class="open"') == page.count('data-verdict="not judged"') == page.count("<figure") > 0


# without a model


def request(**settings):
    typed = {"rewards": (REWARDS[0],), "num_steps": 20} | settings.pop("typed", {})
    return ScalingRequest(**{"out": Path("nowhere"), "budgets": (80,), "typed": typed} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ("draw",)}, "--stage should be one of"),
        ({"budgets": (0,)}, "--budgets"),
        ({"budgets": (39,), "methods": ("pruning",)}, "39 sample steps are less than two images of 20 steps"),
        ({"budgets": (90,)}, "90 sample steps are no whole number of images of 20 steps, .*: take 80"),
        ({"budgets": (80,), "baseline_steps": (15,)}, "80 .* no whole number of images of 15 steps, .*: take 75"),
        ({"typed": {"num_samples": 1}}, "--num-samples should be at least 2"),
        ({"methods": ("unsteered",)}, "always drawn"),
        ({"methods": ("annealing",)}, "method should be one of"),
        ({"suite": "mjbench"}, "The suite should be one of"),
    ],
)
def test_wrong_requests(settings, message):
    with pytest.raises(ValueError, match=message):
        asked = request(**settings)
        asked.task()
        plan_scaling(asked)


def test_budgets_are_those_of_some_plain_images_if_none_is_named():
    folders = list(plan_scaling(request(budgets=())))
    assert folders == ["plain", "budget-80-steps-20", "budget-160-steps-20", "budget-320-steps-20"]


def test_an_unknown_heldout_reward_is_refused_before_anything_is_drawn(tmp_path):
    result = run("--out", tmp_path / "out", "--budgets", "80", "--steps", "4", "--heldout", "shapes-clipscor")
    assert result.exit_code == 2
    assert "Did you mean 'shapes-clipscore'" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_suite_of_prompts_needs_a_file():
    with pytest.raises(ValueError, match="--prompts FILE"):
        request(suite="prompts").task()


def test_the_spread_is_pooled_within_prompts():
    """Between prompts rewards differ by ten; that is no spread."""
    values = {0: (1.0, 3.0), 1: (12.0, 12.0)}
    plain = {(i, s): Outcome(v, f"prompt {i}", "") for i, pair in values.items() for s, v in enumerate(pair)}
    scale = Scale.of(plain)
    assert (scale.spread, scale.means) == (1.0, {0: 2.0, 1: 12.0})
    assert scale.of_gains({(1, 0): Outcome(13.0, "prompt 1", "")})[1, 0].value == 1.0


def test_rewards_that_never_differ_have_no_unit():
    plain = {(0, sample): Outcome(1.0, "a prompt", "") for sample in range(2)}
    assert Scale.of(plain).of_gains(plain) == {}


def test_curves_of_a_reward_without_a_price_and_without_intervals(tmp_path):
    def row(method, budget, price):
        ends = {"estimate": 0.5, "low": None, "high": None}
        names = {"method": method, "reward": "$mine$", "budget": budget, "num_steps": 20}
        return {**names, "own": ends, "judge": None, "prices": {"sdxl": price, "flux.1-dev": None}}

    rows = [row("best-of-n", 80, 4.0), row("pruning", 80, 4.5), row("best-of-n", 160, 8.0)]
    assert draw_curves(rows, "sdxl", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    assert not draw_curves(rows, "flux.1-dev", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no runs of fk-reward scaling"):
        ScalingPoints(read_scaling_runs(tmp_path))
