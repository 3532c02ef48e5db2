"""`fk-reward generate` on a tiny random Stable Diffusion."""

from __future__ import annotations

import errno
import json
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from fk_reward import FKSteeringConfig, SteeringTrace
from fk_reward.cli import generate
from fk_reward.output_folder import hold_folder

PROMPTS = ("a red circle", "a blue square")


@pytest.fixture
def options(model, tmp_path):
    return ["--model", model, "--reward", "brightness", "--steps", 6, "--out", tmp_path / "out"]


def pixels(path):
    return np.asarray(Image.open(path))


def test_writes_images_traces_lineages_and_a_summary(run, options, tmp_path):
    result = run("generate", *PROMPTS, *options, "-k", 3, "--images-per-prompt", 2, "--seed", 7)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    images = {f"{prompt:03d}-{rank:02d}.png" for prompt in (0, 1) for rank in (0, 1)}
    others = {"result.json", "trace-000.json", "trace-001.json", "lineage-000.png", "lineage-001.png"}
    assert {path.name for path in folder.iterdir()} == images | others
    summary = json.loads((folder / "result.json").read_text())
    assert [entry["prompt"] for entry in summary["results"]] == list(PROMPTS)
    assert summary["config"] == FKSteeringConfig(num_particles=3).to_dict()
    assert summary["arguments"] == {"num_inference_steps": 6}
    assert set(summary["versions"]) == {"fk_reward", "torch", "diffusers", "transformers"}
    for index, entry in enumerate(summary["results"]):
        trace = SteeringTrace.from_json(folder / entry["trace"])
        assert trace.prompts == (PROMPTS[index],)
        assert trace.steps[0].thumbnails is not None
        assert entry["seeds"] == [7, 8, 9]
        assert entry["rewards"] == sorted(entry["rewards"], reverse=True)
        for name, reward in zip(entry["images"], entry["rewards"], strict=True):
            assert pixels(folder / name).mean() / 255 == pytest.approx(reward, abs=2e-3)
    assert "000-01.png" in result.output and "a blue square" in result.output


@pytest.mark.parametrize(("solver", "sizes"), [((), [6, 4, 2]), (("--solver", "sde-dpmsolver++-20"), [1, 6, 1])])
def test_the_recommended_search_has_so_many_candidates(run, options, tmp_path, solver, sizes):
    result = run("generate", PROMPTS[0], *options, *solver, "--search", "recommended", "-k", 6)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["config"] == {"situation": "auto", "num_particles": 6}
    assert summary["results"][0]["seeds"] == list(range(sizes[0]))
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert [step.num_particles for step in trace.steps] == sizes
    assert trace.notes[0].startswith(f"Recommended chose {'TreeSearch' if solver else 'Pruning'}(")
    options[-1] = tmp_path / "both"
    refused = run("generate", PROMPTS[0], *options, "--search", "recommended", "-k", 6, "--budget", 60)
    assert refused.exit_code != 0 and "--budget says what num_particles Recommended has" in refused.output


def test_a_prompt_does_not_depend_on_the_others(run, options, tmp_path):
    assert run("generate", *PROMPTS, *options).exit_code == 0
    assert run("generate", PROMPTS[1], *options[:-1], tmp_path / "alone").exit_code == 0
    assert (pixels(tmp_path / "out" / "001-00.png") == pixels(tmp_path / "alone" / "000-00.png")).all()
    assert (pixels(tmp_path / "out" / "000-00.png") != pixels(tmp_path / "alone" / "000-00.png")).any()


def test_one_particle_is_the_stock_image_of_that_seed(run, options, model, tmp_path):
    assert run("generate", PROMPTS[0], *options, "-k", 1, "--seed", 5, "--guidance-scale", 2.5).exit_code == 0
    stock = DiffusionPipeline.from_pretrained(model)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    image = stock(PROMPTS[0], num_inference_steps=6, eta=1.0, guidance_scale=2.5, generator=generator).images[0]
    assert (pixels(tmp_path / "out" / "000-00.png") == np.asarray(image)).all()


def test_settings_reach_the_sampler(run, options, tmp_path):
    settings = ["--potential", "sum", "--reward-scale", "auto", "--num-resamples", 2, "--resampling", "ssp"]
    settings += ["--ess-threshold", 1.0, "--selection", "sample"]
    result = run("generate", PROMPTS[0], *options, *settings)
    assert result.exit_code == 0, result.output
    expected = FKSteeringConfig(
        potential="sum", reward_scale="auto", num_resamples=2, resampling="ssp", ess_threshold=1.0, selection="sample"
    )
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert trace.config == expected.to_dict()
    assert len(trace.steps) == 3


def test_when_particles_are_scored_and_how_many_are_finished(run, options, tmp_path):
    settings = ["--resample-start", 0.5, "--resample-stop", 0.8, "--num-resamples", 2, "-k", 4]
    result = run("generate", PROMPTS[0], *options, *settings, "--final-particles", 2, "--images-per-prompt", 2)
    assert result.exit_code == 0, result.output
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert [step.step for step in trace.steps] == [3, 4, 6]
    assert [step.num_particles for step in trace.steps] == [4, 3, 2]
    settings += ["--target-ess", 0.7, "--reward-scale", "auto", "--stop-reward", -1]
    assert run("generate", PROMPTS[0], *options, *settings, "--overwrite").exit_code == 0
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert (trace.config["target_ess"], trace.config["stop_reward"]) == (0.7, -1.0)
    assert [step.step for step in trace.steps] == [3, 6], "any reward stops the scoring"


def test_places_and_speed(run, options, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("fk_reward.pipelines.loading.speed_up", lambda pipe, **chosen: asked.append((pipe, chosen)))
    assert run("generate", PROMPTS[0], *options).exit_code == 0
    assert asked == []
    chosen = ["--reward-device", "cpu", "--compile", "--channels-last", "--overwrite"]
    assert run("generate", PROMPTS[0], *options, *chosen).exit_code == 0
    ((pipe, arguments),) = asked
    assert pipe.reward_device == torch.device("cpu")
    assert arguments == {"compile": True, "channels_last": True}
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (summary["reward_device"], summary["compile"], summary["channels_last"]) == ("cpu", True, True)


def test_a_compiler_that_does_not_work(refused, options, monkeypatch):
    def fails(pipe, **chosen):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("fk_reward.pipelines.loading.speed_up", fails)
    assert "--compile: no C++ compiler" in refused("generate", PROMPTS[0], *options, "--compile")


def test_batch_sizes_reach_the_pipeline_and_change_no_image(run, options, tmp_path):
    assert run("generate", PROMPTS[0], *options).exit_code == 0
    sizes = ["--particle-batch-size", 3, "--decode-batch-size", "auto", "--reward-batch-size", 1]
    assert run("generate", PROMPTS[0], *options[:-1], tmp_path / "split", *sizes).exit_code == 0
    summary = json.loads((tmp_path / "split" / "result.json").read_text())
    assert summary["batch_sizes"] == {
        "particle_batch_size": 3,
        "decode_batch_size": "auto",
        "reward_batch_size": 1,
    }
    split, whole = (pixels(tmp_path / folder / "000-00.png").astype(int) for folder in ("split", "out"))
    assert abs(split - whole).max() <= 1


def test_a_solver_brings_its_steps_and_guidance_and_what_is_typed_wins(run, model, tmp_path):
    line = [
        "generate",
        PROMPTS[0],
        "--model",
        model,
        "--reward",
        "brightness",
        "--solver",
        "lcm-4",
        "--preview",
        "vae/2",
    ]
    assert run(*line, "--out", tmp_path / "out").exit_code == 0
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (summary["solver"], summary["preview"], summary["scheduler"]) == ("lcm-4", "vae/2", "LCMScheduler")
    assert summary["arguments"] == {"num_inference_steps": 4, "guidance_scale": 1.0}
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert (trace.num_steps, trace.num_model_rows) == (4, 16)
    assert [step.thumbnails.shape[-1] for step in trace.steps] == [32] * (len(trace.steps) - 1) + [64]
    assert run(*line, "--steps", 3, "--guidance-scale", 2, "--out", tmp_path / "typed").exit_code == 0
    summary = json.loads((tmp_path / "typed" / "result.json").read_text())
    assert summary["arguments"] == {"num_inference_steps": 3, "guidance_scale": 2.0}


def test_a_folder_with_files_is_refused_unless_overwrite(run, refused, options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "not empty" in refused("generate", PROMPTS[0], *options)
    assert run("generate", PROMPTS[0], *options, "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.fixture
def stopped(run, options, tmp_path, monkeypatch):
    """A folder of three prompts whose command was stopped while it drew the second one."""
    calls = []
    sample = generate._sample

    def stop(pipe, prompt, *arguments):
        calls.append(prompt)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(pipe, prompt, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_sample", stop)
        assert run("generate", *PROMPTS, "a star", *options).exit_code != 0
    return tmp_path / "out"


def contents(folder):
    """Every file with its bytes, but for seconds and plots, which differ from run to run."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".png"}
    summary = json.loads((folder / "result.json").read_text())
    del summary["seconds"]
    for result in summary["results"]:
        del result["seconds"], result["files"][result["trace"]]
    return {name: data for name, data in files.items() if not name.startswith("lineage")} | {"result.json": summary}


def test_a_stopped_command_can_be_read_and_goes_on(run, options, tmp_path, stopped, monkeypatch):
    summary = json.loads((stopped / "result.json").read_text())
    assert (summary["complete"], [result["prompt"] for result in summary["results"]]) == (False, [PROMPTS[0]])
    kept = {path: path.stat().st_mtime_ns for path in stopped.glob("*000*")}
    drawn = []
    sample = generate._sample
    monkeypatch.setattr(generate, "_sample", lambda pipe, text, *rest: drawn.append(text) or sample(pipe, text, *rest))
    again = run("generate", *PROMPTS, "a star", *options)
    assert again.exit_code == 0, again.output
    assert "1 of 3 prompts are finished; going on." in again.output
    assert drawn == [PROMPTS[1], "a star"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert run("generate", *PROMPTS, "a star", *options[:-1], tmp_path / "whole").exit_code == 0
    assert contents(stopped) == contents(tmp_path / "whole")
    assert json.loads((stopped / "result.json").read_text())["complete"] is True


def test_a_finished_command_changes_nothing_and_loads_nothing(run, options, tmp_path, monkeypatch):
    assert run("generate", PROMPTS[0], *options).exit_code == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("fk_reward.pipelines.loading.load_pipeline", None)
    again = run("generate", PROMPTS[0], *options)
    assert again.exit_code == 0, again.output
    assert "nothing to do" in again.output and "000-00.png" in again.output
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed", 8], "seed 0 -> 8"),
        (["--potential", "sum"], "config.potential 'difference' -> 'sum'"),
        (["--guidance-scale", 2], "arguments.guidance_scale None -> 2.0"),
        (["--images-per-prompt", 2], "num_images_per_prompt 1 -> 2"),
    ],
)
def test_other_settings_are_refused_by_name(run, refused, options, stopped, change, named):
    assert named in refused("generate", *PROMPTS, "a star", *options, *change)
    assert "prompts.1 'a blue square' -> 'a star'" in refused("generate", PROMPTS[0], "a star", *options)


def test_a_prompt_whose_image_was_lost_or_changed_is_made_again(run, options, tmp_path, caplog):
    assert run("generate", *PROMPTS, *options).exit_code == 0
    image = tmp_path / "out" / "001-00.png"
    whole = image.read_bytes()
    for damage in (b"", None):
        image.unlink() if damage is None else image.write_bytes(damage)
        assert run("generate", *PROMPTS, *options).exit_code == 0
        assert image.read_bytes() == whole
    assert "001-00.png: missing or changed" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"results": 3}', "\0\0\0"])
def test_a_damaged_result_is_named(refused, options, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text(text)
    message = refused("generate", PROMPTS[0], *options)
    assert "result.json" in message and "--overwrite" in message


def test_a_folder_in_use_is_refused(refused, options, tmp_path):
    with hold_folder(tmp_path / "out"):
        assert f"{tmp_path / 'out'} is in use by process {os.getpid()}" in refused("generate", PROMPTS[0], *options)


@pytest.mark.parametrize("name", ["000-00.png", "trace-000.json", "result.json"])
def test_a_full_disk_says_which_file(refused, options, tmp_path, monkeypatch, name):
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = refused("generate", PROMPTS[0], *options)
    assert f"No space left on device: '{tmp_path / 'out' / name}'" in message
    assert "start the same command again" in message


def test_a_file_in_place_of_the_folder_is_refused(refused, options, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "is a file" in refused("generate", PROMPTS[0], *options, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--potential", "min"], "potential should be one of"),
        (["--reward-scale", "strong"], 'reward_scale should be a number (or "card" or "auto")'),
        (["-k", 0], "num_particles should be at least 1"),
        (["--images-per-prompt", 9], "num_images_per_prompt should be in"),
        (["--reward", "brightnes"], "Did you mean 'brightness'?"),
        (["--model", "/no/such/folder"], "/no/such/folder: expected the folder of a pipeline"),
        (["--model", "stabilityai/stable-diffusion-2-1"], "sd2-community"),
        (["--device", "tpu"], "--device should be one of"),
        (["--dtype", "int8"], "--dtype should be one of"),
        (["--steps", 0], "--num-inference-steps should be at least 1"),
        (["--particle-batch-size", "few"], 'particle_batch_size should be an int, "auto" or None'),
        (["--decode-batch-size", 0], "decode_batch_size should be at least 1"),
        (["--solver", "ddim100"], "Did you mean 'ddim-100'"),
        (["--preview", "taesd-xl"], "Did you mean 'taesdxl'"),
        (["--resample-start", 0.95], "resample_stop should be in"),
        (["--final-particles", 9], "final_particles should be at most"),
        (["--reward-device", "cuda:99"], "reward_device should be a device"),
    ],
)
def test_a_wrong_option_is_told_without_a_traceback(refused, options, arguments, message):
    assert message in refused("generate", PROMPTS[0], *options, *arguments)


@pytest.mark.parametrize("arguments", [["--potential", "min"], ["--solver", "ddim100"], ["--decode-batch-size", "x"]])
def test_what_is_refused_leaves_no_folder(refused, options, arguments, tmp_path):
    refused("generate", PROMPTS[0], *options, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused, options):
    assert "sees no GPU" in refused("generate", PROMPTS[0], *options, "--device", "cuda")


def test_defects_keep_their_traceback(run, options, monkeypatch):
    def broken(*arguments, **options):
        raise TypeError("a defect")

    monkeypatch.setattr("fk_reward.pipelines.loading.load_pipeline", broken)
    result = run("generate", PROMPTS[0], *options)
    assert isinstance(result.exception, TypeError)


def test_another_search_has_options_of_its_own(run, refused, options, tmp_path):
    cuts = ["-k", 5, "--keep", 3, 2, "--at", 0.3, 0.6]
    result = run("generate", PROMPTS[0], *options, "--search", "pruning", *cuts)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["search"] == "pruning"
    assert (summary["config"]["num_particles"], summary["config"]["keep"]) == (5, [3, 2])
    help_page = run("generate", "--search", "pruning", "--help").stdout
    assert "--keep" in help_page and "--ess-threshold" not in help_page
    assert "pruning" in refused("generate", PROMPTS[0], *options, "--overwrite", "--keep", 3)
    assert "Did you mean 'pruning'" in refused("generate", PROMPTS[0], *options, "--search", "prunning")


def test_a_search_of_another_package(run, options, tmp_path, monkeypatch):
    found = metadata.EntryPoint("first", "tests.cli.first_search:First", "fk_reward.searches")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [found])
    result = run("generate", PROMPTS[0], *options, "--search", "first", "--num-particles", 2, "--offset", 1)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (summary["search"], summary["config"]) == ("first", {"num_particles": 2, "offset": 1})


def test_a_budget_sets_the_sizes_of_the_search(run, options, tmp_path):
    result = run("generate", PROMPTS[0], *options, "--search", "best-of-n", "--budget", 20)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (summary["budget"], summary["results"][0]["seeds"]) == (20, [0, 1, 2])
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert (trace.budget, trace.cost.sample_steps, trace.config["num_particles"]) == (20, 18, 3)


@pytest.mark.parametrize(("typed", "message"), [((5,), "buys nothing"), ((20, "-k", 4), "--budget says what")])
def test_budgets_that_cannot_be(run, options, typed, message):
    result = run("generate", PROMPTS[0], *options, "--search", "best-of-n", "--budget", *typed)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_look_ahead_is_taken_and_paid_for(run, model, tmp_path):
    line = ["generate", PROMPTS[0], "--model", model, "--reward", "brightness", "--search", "pruning", "--steps", 4]
    line += ["--num-particles", 4, "--keep", 2, "--at", 0.5]
    assert run(*line, "--lookahead", 2, "--out", tmp_path / "out").exit_code == 0
    trace = SteeringTrace.from_json(tmp_path / "out" / "trace-000.json")
    assert trace.provenance.lookahead == 2
    assert trace.sample_steps == 4 * 3 + 2 + 4
    assert json.loads((tmp_path / "out" / "result.json").read_text())["lookahead"] == 2
    assert (
        "lookahead should be a whole number of steps"
        in run(*line, "--lookahead", "lcm", "--out", tmp_path / "b").output
    )


def test_prompts_of_a_file_have_seeds_and_negative_prompts_of_their_own(run, refused, options, tmp_path):
    rows = [{"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1], "seed": 40, "negative_prompt": "grey"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = run("generate", "--prompts", path, *options, "-k", 2, "--negative-prompt", "blurred")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [entry["seeds"] for entry in summary["results"]] == [[0, 1], [40, 41]]
    assert (summary["negative_prompts"], summary["seeds"]) == ([None, "grey"], [None, 40])
    typed = [*options[:-1], tmp_path / "typed", "-k", 2]
    assert run("generate", PROMPTS[1], *typed, "--seed", 40, "--negative-prompt", "grey").exit_code == 0
    assert (pixels(tmp_path / "out" / "001-00.png") == pixels(tmp_path / "typed" / "000-00.png")).all()
    path.write_text("\n".join(json.dumps(row | {"negative_prompt": "red"}) for row in rows))
    again = refused("generate", "--prompts", path, *options, "-k", 2, "--negative-prompt", "blurred")
    assert "negative_prompts.0 None -> 'red'" in again


def test_size_and_scheduler_reach_the_pipeline(run, options, tmp_path):
    chosen = [
        "--height",
        32,
        "--width",
        48,
        "--scheduler",
        "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++",
    ]
    result = run("generate", PROMPTS[0], *options, "-k", 2, *chosen)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out" / "000-00.png").size == (48, 32)
    summary = json.loads((tmp_path / "out" / "result.json").read_text())
    assert summary["scheduler"] == "DPMSolverMultistepScheduler"
    assert summary["arguments"] == {"num_inference_steps": 6, "height": 32, "width": 48}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["--scheduler", "EulerAncestral"], "'EulerAncestralDiscreteScheduler'"),
        (["--scheduler", "DDIMScheduler:colour=red"], "DDIMScheduler has no setting 'colour'"),
        (["--offload", "model", "--device", "cpu"], "and the device is the CPU"),
        (["--lora", "."], "--lora .: cannot be put on this model"),
    ],
)
def test_what_only_the_model_can_tell(refused, options, chosen, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in refused("generate", PROMPTS[0], *options, *chosen)


def test_loras_change_the_images_by_their_weights(run, options, model, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(model)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for name, weight in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    pipe.save_lora_weights(tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    drawn = {}
    for text in (None, f"{file}=0", str(file), str(tmp_path / "lora")):
        folder = tmp_path / f"out-{len(drawn)}"
        line = [*options[:-1], folder, "-k", 2, *(["--lora", text] if text else [])]
        result = run("generate", PROMPTS[0], *line)
        assert result.exit_code == 0, result.output
        drawn[text] = pixels(folder / "000-00.png")
    without, off, on, from_folder = drawn.values()
    assert (without == off).all() and (on == from_folder).all() and (without != on).any()


def test_a_preset_is_a_search(run, options, tmp_path):
    assert run("generate", PROMPTS[0], *options, "-k", 2, "--preset", "fk-paper").exit_code == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["config"]["num_particles"] == 2


def test_a_line_for_each_prompt_where_there_is_no_terminal(run, options):
    result = run("generate", *PROMPTS, *options, "-k", 2)
    lines = [line for line in result.stderr.splitlines() if " of 2: " in line]
    assert lines[0].startswith("1 of 2: a red circle (") and "left)" in lines[0]
    assert lines[1].startswith("2 of 2: a blue square (") and "left" not in lines[1]
