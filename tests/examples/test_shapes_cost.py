"""The command that holds accuracy against cost, on a tiny model: what it draws, resumes, counts and reports."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest

from examples.benchmarks import shapes_cost, shapes_unit_costs
from examples.benchmarks.shapes_cost import VARIANTS, SweepSettings, variant_populations
from examples.benchmarks.shapes_populations import Population, run_population
from examples.benchmarks.shapes_unit_costs import method_work, population_work, time_units
from fk_reward.benchmarks.store import ResultStore
from fk_reward.rewards import CallableReward
from fk_reward.search import FKSteeringConfig
from fk_reward.shapes import benchmark_prompts
from tests.examples.scripts import invoke
from tests.examples.shapes_stage import REWARDS

CHOSEN = ("ddim-50", "ddim-50-preview", "sde-dpmsolver++-20-preview-funnel")
SWEEP = SweepSettings(
    model="tiny", reward="brightness", prompts="benchmark", num_prompts=2, seed=0, num_seeds=1, steps=5
)


@pytest.fixture(autouse=True)
def small_previews(monkeypatch):
    """The tiny model has other latents than the shapes world."""
    for name, variant in VARIANTS.items():
        if variant.preview is not None:
            monkeypatch.setitem(VARIANTS, name, replace(variant, preview="vae/2"))


def run(out, *options, chosen=CHOSEN, code=0):
    arguments = ["--num-prompts", 2, "--num-seeds", 1, "--num-particles", "2,4", "--steps", 4, "--batch-size", 4]
    arguments += ["--reward", "brightness", "--num-repetitions", 2, "--out", out, *options]
    arguments += [word for name in chosen for word in ("--variant", name)]
    return " ".join(invoke(shapes_cost.main, *arguments, code=code).split())


def report(out):
    return json.loads((out / "shapes_cost.json").read_text(encoding="utf-8"))


def records(out, variant):
    return {(r["method"], r["num_particles"], r["prompt_index"]): r for r in ResultStore(out / variant).load()}


def check_report(out):
    """Accuracy and cost of each row, worked out anew from the records and from the seconds of each round."""
    content = report(out)
    rounds = content["unit_costs"]["rounds"]
    ratios = {name: [s[i] / rounds["denoiser row"][i] for i in range(len(s))] for name, s in rounds.items()}
    unit = {name: statistics.median(of_rounds) for name, of_rounds in ratios.items()}
    for row in content["rows"]:
        preview = VARIANTS[row["variant"]].preview is not None
        finished = 1 if row["method"] == "unsteered" else row["final_particles"] or row["num_particles"]
        cells = [records(out, row["variant"])[row["method"], row["num_particles"], index] for index in range(2)]
        assert row["num_results"] == 2
        assert row["overall"]["estimate"] == pytest.approx(sum(cell["correct"] for cell in cells) / 2)
        cost = sum(cell["model_rows"] + finished * unit["decode"] for cell in cells) / 2
        cost += (cells[0]["decoded"] - finished) * unit["preview vae/2" if preview else "decode"]
        cost += 0 if row["method"] == "unsteered" else cells[0]["decoded"] * unit["reward"]
        assert row["cost"] == pytest.approx(cost)


def test_command(offline, tmp_path):
    printed = run(tmp_path / "out", "--figure", tmp_path / "new" / "curve.png")
    assert "Work of the complete run" in printed
    points = [(row["variant"], row["method"], row["num_particles"]) for row in report(tmp_path / "out")["rows"]]
    assert points == [
        ("ddim-50", "unsteered", 1),
        ("ddim-50", "best", 2),
        ("ddim-50", "steered", 2),
        ("ddim-50", "best", 4),
        ("ddim-50", "steered", 4),
        ("ddim-50-preview", "steered", 2),
        ("ddim-50-preview", "steered", 4),
        ("sde-dpmsolver++-20-preview-funnel", "steered", 2),
        ("sde-dpmsolver++-20-preview-funnel", "steered", 4),
    ], "previews and funnels have no plain images of their own"
    check_report(tmp_path / "out")
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| ddim-50 | steered | 4 | 2 |" in (tmp_path / "out" / "shapes_cost.md").read_text(encoding="utf-8")
    assert report(tmp_path / "out")["rows"][4]["to_reference"] == 1.0
    run(tmp_path / "out", "--report", chosen=())
    assert (tmp_path / "out" / "shapes_cost.png").exists()


def test_a_report_with_swapped_costs_is_noticed(offline, tmp_path):
    run(tmp_path, "--resample-start", 0.2, chosen=["ddim-50-preview"])
    check_report(tmp_path)
    whole = report(tmp_path)
    for one, other in (("decode", "reward"), ("decode", "preview vae/2"), ("reward", "denoiser row")):
        rounds = whole["unit_costs"]["rounds"]
        swapped = rounds | {one: rounds[other], other: rounds[one]}
        content = whole | {"unit_costs": {"rounds": swapped}}
        (tmp_path / "shapes_cost.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(AssertionError):
            check_report(tmp_path)


def without_seconds(out):
    found = {name: records(out, name) for name in CHOSEN}
    return {
        (name, *key): {cell: value for cell, value in record.items() if cell != "seconds"}
        for name, of_variant in found.items()
        for key, record in of_variant.items()
    }


@pytest.mark.long
def test_an_interrupted_run_is_resumed_and_gives_the_same(offline, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    append, calls = ResultStore.append, []

    def interrupted(self, results, *, writer="0"):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(append(self, results, writer=writer))

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "append", interrupted)
        run(tmp_path / "cut", code=130)
    assert not (tmp_path / "cut" / "shapes_cost.json").exists()
    units = (tmp_path / "cut" / "unit_costs.json").read_text()
    run(tmp_path / "cut")
    assert (tmp_path / "cut" / "unit_costs.json").read_text() == units, "timed once"
    whole, again = without_seconds(tmp_path / "whole"), without_seconds(tmp_path / "cut")
    assert again.keys() == whole.keys()
    for key, record in whole.items():
        assert again[key].pop("scores") == pytest.approx(record.pop("scores"), abs=1e-5), key
        assert again[key] == pytest.approx(record, abs=1e-5), key
    lengths = [len(ResultStore(tmp_path / out / name).load()) for out in ("whole", "cut") for name in CHOSEN]
    assert lengths[:3] == lengths[3:], "nothing is drawn twice"


@pytest.mark.long
def test_shards_share_the_work(offline, tmp_path):
    run(tmp_path, "--shard", "1/2")
    assert "run shard 0" in run(tmp_path, "--report", code=2)
    run(tmp_path, "--shard", "0/2")
    assert not (tmp_path / "shapes_cost.json").exists(), "a shard does not report"
    run(tmp_path, "--report")
    check_report(tmp_path)


def test_an_unfinished_run_is_reported_as_such(offline, tmp_path):
    run(tmp_path, "--shard", "0/2")
    run(tmp_path, chosen=["ddim-100"])
    printed = run(tmp_path, "--report", "--reference", "ddim-100 best 8", chosen=())
    assert "Not everything is finished" in printed
    assert "no results of the reference (ddim-100, best of 8 by brightness)" in printed


def test_what_all_variants_share_cannot_change(offline, tmp_path):
    run(tmp_path, chosen=["ddim-50"])
    assert "other settings (num_prompts 2 -> 3)" in run(tmp_path, "--num-prompts", 3, chosen=["ddim-100"], code=2)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_work_is_foreseen_and_read_from_results(offline, pipe, name, size=7):
    """Both are what the tiny model was seen to do: rows of its UNet, latents of each size decoded, images scored."""
    variant = VARIANTS[name]
    settings = SWEEP.of_variant(variant, [size])
    counts = dict.fromkeys(("model_rows", "decodes", "previews", "scored"), 0)

    def count(key, args):
        counts["previews" if key == "decodes" and args[0].shape[-1] < 8 else key] += len(args[0])

    decode, score = pipe.vae.decode, REWARDS["brightness"]
    pipe.vae.decode = lambda *args, **kwargs: count("decodes", args) or decode(*args, **kwargs)
    pipe.unet.register_forward_pre_hook(lambda _, args: count("model_rows", args))
    rewards = {"brightness": CallableReward(lambda *args: count("scored", args) or score(*args))}
    pipe.solver, pipe.preview = settings.solver, settings.preview
    prompts = dict(enumerate(benchmark_prompts(2)))
    for reward in (None, "brightness"):
        population = Population(reward, size, 0)
        counts.update(dict.fromkeys(counts, 0))
        found = run_population(pipe, population, settings=settings, rewards=rewards, prompts=prompts)
        assert vars(population_work(population, settings).times(2)) == counts, reward
        works = [method_work(record, settings.to_dict()) for record in found if record["num_particles"] == size]
        assert [vars(work.times(2)) for work in works] == [counts] * 2


def test_guidance_is_that_of_all_else_of_the_variant_else_of_the_solver():
    guidance = {name: SWEEP.of_variant(variant).guidance_scale for name, variant in VARIANTS.items()}
    assert guidance == dict.fromkeys(VARIANTS, 3.0)
    unguided = replace(VARIANTS["lcm-8-guided"], guidance_scale=None)
    assert SWEEP.of_variant(unguided).guidance_scale == 1.0
    assert replace(SWEEP, guidance_scale=2.0).of_variant(VARIANTS["lcm-8-guided"]).guidance_scale == 2.0


def test_what_would_be_drawn_twice_is_left_out():
    drawn = {name: variant_populations(v, SWEEP.of_variant(v)) for name, v in VARIANTS.items()}
    kinds = {name: [(p.reward is not None, p.num_particles) for p in found] for name, found in drawn.items()}
    assert kinds["ddim-50"] == [(False, 8), (True, 2), (True, 4), (True, 8)]
    assert kinds["ddim-50-funnel"] == [(True, 6), (True, 8)]
    assert kinds["ddim-50-preview"] == [(True, 4)]
    pair = replace(SWEEP, steering=FKSteeringConfig(ess_threshold=0.5)).of_variant(VARIANTS["ddim-50"], [2])
    assert variant_populations(VARIANTS["ddim-50"], pair) == [Population(None, 2, 0)]


def test_units_are_a_row_and_a_picture(pipe, monkeypatch):
    """Every run of the clock takes 1, 2, 3, ... seconds: divided by rows or images, in alternating order."""
    ticks, sizes = iter(range(1, 100)), []

    monkeypatch.setattr(shapes_unit_costs, "seconds_of", lambda run: run() is None or next(ticks))
    pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    options = {"previews": ["vae/2"], "batch_size": 6, "num_repetitions": 2, "guidance_scale": 3.0}
    rounds = time_units(pipe, REWARDS["brightness"], **options)
    assert set(sizes) == {12}
    assert rounds == {
        "denoiser row": [1 / 12, 8 / 12],
        "decode": [2 / 6, 7 / 6],
        "reward": [3 / 6, 6 / 6],
        "preview vae/2": [4 / 6, 5 / 6],
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--variant", "ddim-7"],
        ["--prompts", "all"],
        ["--num-particles", "0"],
        ["--num-particles", "1", "--variant", "ddim-50-funnel"],
        ["--reference", "ddim-50 steered"],
        ["--reference", "ddim-50 worst 4"],
        ["--shard", "2/2"],
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, options):
    run(tmp_path / "new", *options, chosen=(), code=2)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_results(tmp_path):
    assert "holds no results" in run(tmp_path, "--report", code=2)


def test_default_run_has_the_default_reference():
    point = shapes_cost.parse_reference("ddim-50 steered 4", "x")
    assert point.method.num_particles in VARIANTS[point.variant].num_particles
