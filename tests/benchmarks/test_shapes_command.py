"""The command of the shapes benchmark: its options, its store, its report."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
import torch
import typer
from typer.testing import CliRunner

from examples.benchmarks.overhead import mean_pixel
from fk_reward.benchmarks import shapes
from fk_reward.benchmarks.store import ResultStore
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.pipelines import SOLVERS
from fk_reward.rewards import CallableReward
from tests.benchmarks.shapes_stage import REWARDS, SETTINGS
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder


def test_main(offline, tmp_path, capsys):
    options = {"num_prompts": 2, "num_particles": "2", "steps": 3, "out": tmp_path}
    options |= {"reward": ["brightness", "darkness", "brightness"]}
    shapes.main(**options, shard="0/2")
    assert not (tmp_path / "shapes.json").exists(), "a shard does not report"
    shapes.main(**options, shard="1/2")
    shapes.main(report=True, out=tmp_path)
    summary = json.loads((tmp_path / "shapes.json").read_text(encoding="utf-8"))
    assert [row["num_results"] for row in summary["methods"]] == [2] * 5
    assert summary["settings"]["num_steps"] == 3
    assert summary["settings"]["rewards"] == ["brightness", "darkness"]
    text = (tmp_path / "shapes.md").read_text(encoding="utf-8")
    assert "| steered of 2 by darkness | steered of 2 by brightness |" in text
    assert "Accuracy" in capsys.readouterr().out
    with pytest.raises(ValueError, match="num_steps 3 -> 4"):
        shapes.main(**options | {"steps": 4})
    with pytest.raises(ValueError, match="rewards"):
        shapes.main(**options | {"reward": ["brightness"]})


def test_the_option_may_be_repeated_and_its_text_may_hold_commas(offline, tmp_path, monkeypatch):
    app, text = typer.Typer(), "min(brightness, 0.5*darkness)"
    app.command()(shapes.main)
    monkeypatch.setattr(shapes, "load_reward", lambda name: REWARDS["darkness"])
    options = ["--num-prompts", "1", "--num-particles", "2", "--steps", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*options, "--reward", text, "--reward", "brightness", "--prompts", "sign"])
    assert result.exit_code == 0, result.output
    settings = ResultStore(tmp_path).settings
    assert (settings["rewards"], settings["prompts"]) == ([text, "brightness"], "sign")


def test_solver_and_preview_are_part_of_a_runs_identity(offline, pipe, tmp_path, capsys):
    options = {"num_prompts": 1, "num_particles": "2", "out": tmp_path, "reward": ["brightness"]}
    shapes.main(**options, solver="lcm-4", preview="vae/2")
    settings = ResultStore(tmp_path).settings
    assert (settings["solver"], settings["num_steps"], settings["guidance_scale"]) == ("lcm-4", 4, 1.0)
    assert settings["preview"] == "vae/2"
    assert "solver lcm-4, preview vae/2" in capsys.readouterr().out
    assert pipe.solver is SOLVERS["lcm-4"]
    for other in ({"solver": "lcm-4"}, {"solver": "tcd-4", "preview": "vae/2"}):
        with pytest.raises(ValueError, match="other settings"):
            shapes.main(**options, **other)


def test_solver_and_typed_settings():
    assert shapes.trajectory(None, None, None) == {"solver": None, "num_steps": 50, "guidance_scale": 3.0}
    assert shapes.trajectory("ddim-100", None, None) == {
        "solver": "ddim-100",
        "num_steps": 100,
        "guidance_scale": 3.0,
    }
    assert shapes.trajectory("lcm-4", 6, 2.0) == {"solver": "lcm-4", "num_steps": 6, "guidance_scale": 2.0}


def test_a_preview_of_other_weights_is_refused(pipe, tmp_path):
    preview = make_tiny_autoencoder()
    pipe.preview = preview
    shapes.open_store(tmp_path, SETTINGS, pipe=pipe, rewards=REWARDS)
    with torch.no_grad():
        next(preview.decoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="other settings .weights"):
        shapes.open_store(tmp_path, SETTINGS, pipe=pipe, rewards=REWARDS)


def test_the_default_reward_is_the_embedded_one():
    assert inspect.signature(shapes.main).parameters["reward"].default == [DEFAULT_EMBEDDED_REWARD]


def test_a_reward_of_which_lower_is_better_is_refused_before_anything_is_drawn(offline, monkeypatch):
    errors = CallableReward(mean_pixel, "errors")
    errors.card = replace(errors.card, higher_is_better=False)
    monkeypatch.setattr(shapes, "load_reward", {"brightness": REWARDS["brightness"], "errors": errors}.__getitem__)
    with pytest.raises(ValueError, match="lower is better"):
        shapes.load_models(replace(SETTINGS, rewards=("brightness", "errors")), "cpu")


def test_results_of_other_weights_are_refused(pipe, tmp_path):
    layer = torch.nn.Bilinear(2, 2, 2)  # called with two arguments, as a reward is
    rewards = REWARDS | {"network": CallableReward(layer, "network")}
    shapes.open_store(tmp_path / "pipe", SETTINGS, pipe=pipe, rewards=rewards)
    shapes.open_store(tmp_path / "pipe", SETTINGS, pipe=pipe, rewards=rewards)
    shapes.open_store(tmp_path / "reward", SETTINGS, pipe=pipe, rewards=rewards)
    with torch.no_grad():
        layer.bias.add_(1e-3)
    with pytest.raises(ValueError, match="other settings .weights"):
        shapes.open_store(tmp_path / "reward", SETTINGS, pipe=pipe, rewards=rewards)
    with torch.no_grad():
        layer.bias.sub_(1e-3)
        next(pipe.unet.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="other settings .weights"):
        shapes.open_store(tmp_path / "pipe", SETTINGS, pipe=pipe, rewards=rewards)


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_wrong_shards(text):
    with pytest.raises(ValueError, match="i/n"):
        shapes.parse_shard(text)


@pytest.mark.parametrize(
    "options",
    [{"potential": "min"}, {"reward_scale": "much"}, {"num_particles": "0"}, {"prompts": "all"}, {"solver": "x"}],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, options):
    with pytest.raises((ValueError, typer.BadParameter)):
        shapes.main(out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("final_particles", [1, 2])
def test_a_population_that_shrinks_costs_less(offline, tmp_path, final_particles):
    options = {"num_prompts": 1, "num_particles": "6", "steps": 4, "reward": ["brightness"]}
    shapes.main(**options, out=tmp_path / "all")
    shapes.main(**options, out=tmp_path / "few", final_particles=final_particles)
    rows = {}
    for name in ("all", "few"):
        methods = json.loads((tmp_path / name / "shapes.json").read_text(encoding="utf-8"))["methods"]
        rows[name] = {row["method"]: row["model_rows"] for row in methods}
    assert rows["few"]["steered"] < rows["all"]["steered"] == rows["few"]["best"]


def test_more_finished_particles_than_there_are_is_told(offline, tmp_path):
    with pytest.raises(typer.BadParameter, match="at most num_particles = 2"):
        shapes.main(num_particles="2,4", final_particles=3, out=tmp_path)
