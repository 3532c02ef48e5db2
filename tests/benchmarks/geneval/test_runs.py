"""The command from end to end with a tiny model: resumed, shared by two processes, and refusing what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from diffusers import DDPMScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import ImageSearch, describe_preview, load_pipe
from fk_reward.benchmarks.geneval import runs as runs_module
from fk_reward.benchmarks.geneval.prompts import color_record, single_object_record
from fk_reward.benchmarks.geneval.runs import PRESETS, find_preset, plan_runs
from fk_reward.benchmarks.geneval.suites import SUITES
from fk_reward.benchmarks.task import TaskOptions
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import CallableReward
from fk_reward.search import SEARCHES
from fk_reward.shapes import is_heldout, parse_prompt
from tests.benchmarks.geneval.tiny_judge import write_clip, write_mask2former
from tests.benchmarks.image_stage import SETTINGS, tree
from tests.command_line import run_command_line
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder
from tests.two_processes import launch


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_sd):
    folder = tmp_path_factory.mktemp("tiny-sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


def options_of(model):
    options = ["--suite", "shapes", "--model", model, "--reward", "shapes-verifier", "--steps", "3", "--device", "cpu"]
    return [*options, "--num-prompts", "5", "--num-samples", "2", "-k", "2", "--ess-threshold", "1"]


@pytest.fixture(scope="module")
def options(model):
    return options_of(model)


def run(*arguments):
    return run_command_line("geneval", *arguments)


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """Folder of a finished command."""
    out = tmp_path_factory.mktemp("geneval")
    result = run("--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "fk-2-shapes-verifier: 5/5, 0 min left" in result.output
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(finished, tmp_path / "copy")


def without_seconds(out):
    """Every file but those in which seconds or the command stand; of the others the figures."""
    files = tree(out)
    timed = [
        name for name in files if name.endswith(("made.json", "manifest.json")) or name.startswith(("report", "images"))
    ]
    kept = {name: content for name, content in files.items() if name not in timed}
    for name in timed:
        if name.endswith("json"):
            content = json.loads(files[name])
            for run_of in content.get("runs", [content]):
                run_of.pop("command", None)
                run_of.get("cost", run_of).pop("seconds", None)
            kept[name] = content
    return kept


def test_all_stages(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"unsteered", "best-of-2-shapes-verifier", "fk-2-shapes-verifier"} | {
        "report.json",
        "report.md",
        "report.tex",
        "images.html",
        "report.html",
    }
    rows = json.loads((finished / "report.json").read_text())["runs"]
    assert [row["num_images"] for row in rows] == [10, 10, 10]
    assert rows[2]["cost"]["reward_calls"] > rows[1]["cost"]["reward_calls"] == 2
    settings = json.loads((finished / "fk-2-shapes-verifier" / "manifest.json").read_text())["settings"]
    assert (settings["search"]["ess_threshold"], settings["guidance_scale"], settings["num_steps"]) == (1.0, 3.0, 3)


def test_a_finished_command_does_nothing_again(copy, options, monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("a prompt is made again")

    monkeypatch.setattr(ImageSearch, "_call", fail)
    before = tree(copy)
    result = run("--out", copy, *options)
    assert result.exit_code == 0, result.output
    assert tree(copy) == before


def test_damage_is_mended(copy, finished, options):
    image = copy / "fk-2-shapes-verifier" / "00003" / "samples" / "0001.png"
    image.write_bytes(image.read_bytes()[:-40])
    (copy / "unsteered" / "00001" / "metadata.jsonl").unlink()
    assert run("--out", copy, *options).exit_code == 0
    assert without_seconds(copy) == without_seconds(finished)


@pytest.mark.parametrize("damage", ["image", "record", "prompt"])
def test_damage_is_named_where_nothing_is_generated(copy, options, damage):
    prompt = copy / "fk-2-shapes-verifier" / "00003"
    if damage == "image":
        image = prompt / "samples" / "0001.png"
        image.write_bytes(image.read_bytes()[:-40])
    elif damage == "record":
        (prompt / "metadata.jsonl").unlink()
    else:
        shutil.rmtree(prompt)
    messages = {
        "image": "0001.png cannot be read",
        "record": "metadata.jsonl is missing",
        "prompt": "00003 is missing",
    }
    assert messages[damage] in refused("--out", copy, *options, "--stage", "judge").replace("- ", "-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--potential", "sum"), "settings.search.potential 'difference' -> 'sum'"),
        (("--steps", "4"), "num_steps 3 -> 4"),
        (("--num-prompts", "4"), "suite.num_prompts 5 -> 4"),
        (("--seed", "1"), "seed 0 -> 1"),
    ],
)
def test_another_config_over_a_run_is_refused(finished, options, changes, message):
    before = tree(finished)
    assert message in refused("--out", finished, *options, *changes, "--method", "fk")
    assert tree(finished) == before


def test_another_suite_over_a_run_is_refused(finished, model, tmp_path):
    (tmp_path / "suite.jsonl").write_text(json.dumps(single_object_record("cow")) + "\n")
    official = ["--prompts", tmp_path / "suite.jsonl", "--model", model, "--steps", 3, "--method", "unsteered"]
    said = refused("--out", finished, *official, "--num-samples", 2, "--device", "cpu")
    assert "suite.name 'shapes' -> 'official'" in said
    assert "beyond the suite's 1 prompts" in refused("--out", finished, *official, "--stage", "judge")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "draw"), "--stage should be one of generate, judge, report"),
        (("--method", "steered", "--suite", "shapes"), "method should be one of"),
        (("--preset", "paper"), "there are fk-paper, llava-reward-paper"),
        (("--suite", "coco"), "suite should be one of official, geneval2, "),
        (("--suite", "shapes", "--prompts", "a.jsonl"), "--prompts goes with the suites official, geneval2"),
        (("--num-prompts", "5"), "--num-prompts goes with the suites shapes-geneval2, shapes"),
        ((), "Name a reward"),
        (("--suite", "shapes", "-k", "1"), "unsteered has one particle"),
        (("--suite", "shapes", "--device", "tpu"), "--device should be one of"),
        (("--suite", "shapes", "--potential", "min"), "potential should be one of"),
        (("--suite", "shapes", "--reward-scale", "much"), 'reward_scale should be a number (or "card" or "auto")'),
        (("--suite", "shapes", "-k", "0"), "should be positive whole numbers separated by commas"),
        (("--suite", "shapes", "--solver", "x"), "Unknown solver 'x'"),
        (("--suite", "shapes", "-k", "2", "--final-particles", "3"), "at most num_particles = 2"),
        (("--suite", "shapes", "--shard", "2/2"), "shard should be i/n"),
        (("--suite", "shapes", "--shard", "0/2"), "add --stage generate"),
        (("--suite", "shapes", "--solver", "ddim-50", "--scheduler", "ddim"), "leave out scheduler"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, arguments, message):
    assert message in refused("--out", tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stage", ["judge", "report"])
def test_wrong_folders(tmp_path, stage):
    options = ("--suite", "shapes", "--stage", stage)
    assert "There is no folder" in refused("--out", tmp_path / "nothing", *options)
    assert "holds no run" in refused("--out", tmp_path, *options)


def test_presets_are_the_papers_settings():
    for name in PRESETS:
        preset = find_preset(name)
        assert (preset.num_steps, preset.scheduler, preset.steering.num_particles) == (100, "ddim", 4)
        assert preset.steering.scoring_steps(100) == (20, 40, 60, 80)
        assert (preset.steering.potential, preset.steering.reward_scale) == ("max", 10.0)
    unsteered, best, steered = plan_runs("official", preset=PRESETS["fk-paper"], typed={"num_steps": 50})
    assert (unsteered.model, unsteered.num_samples) == ("sd-2.1", 4)
    assert (best.name, steered.name) == ("best-of-4-imagereward", "fk-4-imagereward")
    assert {run.num_steps for run in (unsteered, best, steered)} == {50}, "what is typed goes before the preset"


def test_a_preset_is_in_the_manifest(model, tmp_path):
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--preset", "fk-paper", "--steps", 2, "--method", "unsteered", "--stage", "generate"]
    result = run("--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "unsteered" / "manifest.json").read_text())
    assert manifest["preset"]["name"] == "fk-paper"
    assert (manifest["preset"]["num_steps"], manifest["preset"]["changed"]["num_steps"]) == (100, 2)
    assert (manifest["model"]["scheduler"], manifest["model"]["eta"]) == ("DDIMScheduler", 1.0)


def test_ddim_replaces_another_scheduler(tmp_path, tiny_sd, tiny_sd3, monkeypatch):
    tiny_sd(scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    settings = replace(SETTINGS, model=str(tmp_path / "ddpm"))
    for scheduler, name in (("auto", "DDPMScheduler"), ("ddim", "DDIMScheduler")):
        pipe = load_pipe(replace(settings, scheduler=scheduler), device="cpu", dtype=torch.float32)
        assert type(pipe.scheduler).__name__ == name
    tiny_sd3().save_pretrained(tmp_path / "sd3")
    with pytest.raises(ValueError, match="no noise schedule that DDIM could follow"):
        load_pipe(replace(settings, model=str(tmp_path / "sd3"), scheduler="ddim"), device="cpu", dtype=torch.float32)


def test_the_official_suite_with_tiny_models(model, tmp_path):
    (tmp_path / "suite.jsonl").write_text(json.dumps(color_record("cow", "red")) + "\n")
    judge = ["--detector", write_mask2former(tmp_path / "detector"), "--clip", write_clip(tmp_path / "clip")]
    options = ["--out", tmp_path / "out", "--model", model, "--prompts", tmp_path / "suite.jsonl", "--device", "cpu"]
    options += ["--steps", 2, "--num-samples", 2, "--method", "unsteered", *judge]
    assert "Nothing was judged; add --skip-self-test" in refused(*options), "random weights know no stop sign"
    assert not list((tmp_path / "out").rglob("verdicts.json"))
    result = run(*options, "--skip-self-test")
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out" / "unsteered" / "results.jsonl").read_text().splitlines()) == 2
    assert "self-test skipped" in (tmp_path / "out" / "report.md").read_text()


def test_solver_and_preview_are_part_of_a_runs_identity(model, tmp_path):
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--method", "fk", "-k", 2, "--reward", "shapes-verifier", "--stage", "generate", "--out", tmp_path]
    result = run(*options, "--solver", "lcm-4", "--preview", "vae/2")
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "fk-2-shapes-verifier" / "manifest.json").read_text())
    settings = manifest["settings"]
    assert (settings["solver"], settings["num_steps"], settings["preview"]) == ("lcm-4", 4, "vae/2")
    assert manifest["model"]["scheduler"] == "LCMScheduler"
    assert "preview 'vae/2' -> None" in refused(*options, "--solver", "lcm-4")
    assert "model.scheduler 'LCMScheduler' -> 'TCDScheduler'" in refused(
        *options, "--solver", "tcd-4", "--preview", "vae/2"
    )


def test_a_preview_of_other_weights_is_another_preview(tiny_sd):
    pipe = FKSteeringPipeline(tiny_sd(), reward=lambda images, prompts: images.mean(dim=(1, 2, 3)))
    preview = make_tiny_autoencoder()
    pipe.preview = preview
    first = describe_preview(pipe)
    assert describe_preview(pipe) == first
    with torch.no_grad():
        next(preview.decoder.parameters()).add_(1e-3)
    assert describe_preview(pipe) != first


def test_what_a_solver_sets_and_what_is_typed():
    def plan(**typed):
        (run,) = plan_runs("shapes", methods=["unsteered"], typed=typed)
        return run.solver, run.num_steps, run.guidance_scale

    assert plan() == (None, 50, 3.0)
    assert plan(solver="ddim-100") == ("ddim-100", 100, 3.0)
    assert plan(solver="lcm-4") == ("lcm-4", 4, None), "the solver's own, which the pipeline knows"
    assert plan(solver="lcm-4", num_steps=6, guidance_scale=2.0) == ("lcm-4", 6, 2.0)


def test_the_default_reward_of_shapes_is_the_embedded_one():
    assert {run.reward for run in plan_runs("shapes", typed={})} == {None, DEFAULT_EMBEDDED_REWARD}


def test_a_reward_may_be_repeated_and_its_text_may_hold_commas():
    text = "min(clipscore, 0.5*imagereward)"
    runs = plan_runs("official", methods=["fk"], typed={"rewards": (text, "clipscore")})
    assert [run.reward for run in runs] == [text, "clipscore"]


def test_settings_of_no_search_are_refused():
    with pytest.raises(ValueError, match="num_bananas is not a setting of best-of-n, fk"):
        plan_runs("shapes", typed={"num_bananas": 3})


def test_a_reward_of_which_lower_is_better_is_refused_before_anything_is_drawn(model, tmp_path, monkeypatch):
    errors = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "errors")
    errors.card = replace(errors.card, higher_is_better=False)
    monkeypatch.setattr(runs_module, "load_reward", lambda name: errors)
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--device", "cpu", "--out", tmp_path / "out"]
    assert "lower is better" in refused(*options)
    assert not (tmp_path / "out").exists()


FEW = {"pruning": ("--keep", 3, 2, "--at", ".5", ".7"), "beam": ("--num-proposals", 2, "--num-branchings", 2)}


def test_every_search_is_drawn_judged_and_reported(model, tmp_path):
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--reward", "shapes-clipscore", "-k", 4, "--steps", 5, "--preview", "vae/2"]
    for name in SEARCHES:
        options += ["--search", name, *FEW.get(name, ())]
    result = run("--out", tmp_path, *options, "--particle-batch-size", 3)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert {row["method"] for row in rows} == set(SEARCHES)
    settings = json.loads((tmp_path / "pruning-4-shapes-clipscore" / "manifest.json").read_text())["settings"]
    assert (settings["search"]["keep"], settings["search"]["at"]) == ([3, 2], [0.5, 0.7])
    assert (settings["preview"], settings["batch_sizes"]["particle_batch_size"]) == ("vae/2", 3)


def test_a_search_of_another_package(model, tmp_path, monkeypatch):
    found = metadata.EntryPoint("first", "tests.cli.first_search:First", "fk_reward.searches")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [found])
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--reward", "shapes-verifier", "--steps", 2, "--search", "first", "--offset", 5]
    result = run("--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "first-3-shapes-verifier" / "manifest.json").read_text())["settings"]
    assert settings["search"] == {"num_particles": 3, "offset": 5}
    assert "A number of its own" in run("--help", "--search", "first").stdout


def test_a_setting_of_another_search_says_of_which(tmp_path):
    options = ("--suite", "shapes", "--method", "unsteered", "--method", "pruning")
    said = refused("--out", tmp_path / "new", *options, "--potential", "sum")
    assert "'unsteered' and 'pruning' have no setting --potential; fk, fk-gradient, fk-paper, " in said
    assert not (tmp_path / "new").exists()


def test_help_shows_settings_of_the_searches_that_are_named():
    shown = {name: run("--help", *more).stdout for name, more in (("all", ()), ("pruning", ("--method", "pruning")))}
    assert "--ess-threshold" in shown["all"] and "--keep" not in shown["all"]
    assert "--keep" in shown["pruning"] and "--ess-threshold" not in shown["pruning"]
    assert all("--solver" in text and "--decode-batch-size" in text for text in shown.values())


@pytest.mark.parametrize("final_particles", [1, 2])
def test_a_population_that_shrinks_costs_less(model, tmp_path, final_particles):
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--reward", "shapes-verifier", "-k", 6, "--steps", 4, "--method", "best-of-n", "--method", "fk"]
    rows = {}
    for name, more in (("all", ()), ("few", ("--final-particles", final_particles))):
        result = run("--out", tmp_path / name, *options, *more)
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / name / "report.json").read_text())["runs"]
        rows[name] = {row["method"]: row["cost"]["model_rows"] for row in found}
    assert rows["few"]["fk"] < rows["all"]["fk"] == rows["few"]["best-of-n"]


@pytest.mark.parametrize(
    ("suite", "heldout", "sign"),
    [
        ("shapes", True, False),
        ("shapes-sign", True, True),
        ("shapes-validation", False, False),
        ("shapes-sign-validation", False, True),
    ],
)
def test_settings_are_chosen_by_other_prompts_than_results_are_made_with(suite, heldout, sign):
    prompts = [parse_prompt(record["prompt"]) for record in SUITES[suite].task(TaskOptions(num_prompts=12)).samples]
    assert {is_heldout(prompt) for prompt in prompts} == {heldout}
    if sign:
        assert all("cross" in p.text and not any(spec.color for spec in p.objects) for p in prompts)


def test_shards_by_hand_make_what_one_process_makes(finished, options, tmp_path):
    for shard in ("1/2", "0/2"):
        result = run("--out", tmp_path / "two", *options, "--stage", "generate", "--shard", shard)
        assert result.exit_code == 0, result.output
        assert not (tmp_path / "two" / "report.json").exists(), "a shard does not report"
    assert run("--out", tmp_path / "two", *options).exit_code == 0
    assert without_seconds(tmp_path / "two") == without_seconds(finished)


@pytest.mark.slow
def test_two_processes_make_what_one_makes(finished, options, tmp_path):
    printed = launch("fk_reward.cli", "geneval", "--out", tmp_path / "two", *options, timeout=500)
    assert "fk-2-shapes-verifier: 3/3" in printed, "the first process has three of five prompts"
    assert without_seconds(tmp_path / "two") == without_seconds(finished)


def test_a_budget_makes_every_method_cost_the_same():
    typed = {"budget": 200, "num_steps": 20, "rewards": ("clipscore",)}
    runs = plan_runs("shapes", methods=("unsteered", "best-of-n", "draft-refine"), typed=typed)
    assert [run.search.num_particles for run in runs] == [1, 10, 20]
    with pytest.raises(ValueError, match="leave one of them out"):
        plan_runs("shapes", methods=("best-of-n",), typed=typed | {"num_particles": (4,)})


def test_a_look_ahead_is_part_of_a_runs_identity(model, tmp_path):
    options = ["--suite", "shapes", "--model", model, "--num-prompts", 1, "--num-samples", 1, "--device", "cpu"]
    options += ["--method", "fk", "-k", 2, "--steps", 5, "--reward", "shapes-verifier", "--stage", "generate"]
    result = run(*options, "--lookahead", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "fk-2-shapes-verifier" / "manifest.json").read_text())
    assert manifest["settings"]["lookahead"] == 2
    assert "lookahead 2 -> 1" in refused(*options, "--out", tmp_path)
