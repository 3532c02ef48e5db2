"""What a run depends on, and what is refused because it depends on something else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.benchmarks.geneval.manifest import (
    describe_model,
    make_manifest,
    open_run,
    read_manifest,
    refuse_mixed_runs,
)
from fk_reward.rewards import CallableReward
from tests.benchmarks.geneval.geneval_stage import BRIGHTNESS, MODEL, RECORDS, SETTINGS

ABOUT = {"command": "fk-reward geneval --out results"}


def manifest_of(settings=SETTINGS, **changes):
    return make_manifest(settings, **{"records": RECORDS, "model": MODEL, "reward": None, **changes})


def test_it_says_what_was_run(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    found = read_manifest(tmp_path / "fk")
    assert found["command"] == ABOUT["command"]
    assert found["settings"] == json.loads(json.dumps(SETTINGS.to_dict()))
    assert found["suite"]["name"] == "shapes" and found["suite"]["num_prompts"] == len(RECORDS)
    assert set(found["versions"]) == {"fk_reward", "torch", "diffusers", "transformers"}
    assert found["versions"]["torch"] == torch.__version__


def test_the_same_run_goes_on_whatever_the_command(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    before = (tmp_path / "fk" / "manifest.json").read_bytes()
    (tmp_path / "fk" / "00000").mkdir()
    open_run(tmp_path / "fk", manifest_of(), about={"command": "accelerate launch"})
    assert (tmp_path / "fk" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steering": FKSteeringConfig(potential="sum")}, r"settings\.steering\.potential 'max' -> 'sum'"),
        ({"batch_size": 32}, r"settings\.batch_size 16 -> 32"),
        ({"reward": "other"}, r"settings\.reward 'brightness' -> 'other', reward\.name"),
    ],
)
def test_another_config_is_refused(tmp_path, changes, message):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    before = (tmp_path / "fk" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=rf"holds a run of other settings \({message}.*name a new folder"):
        open_run(tmp_path / "fk", manifest_of(replace(SETTINGS, **changes)), about=ABOUT)
    assert (tmp_path / "fk" / "manifest.json").read_bytes() == before
    open_run(tmp_path / "new" / "fk", manifest_of(replace(SETTINGS, **changes)), about=ABOUT)


def test_other_versions_and_weights_are_refused(tmp_path):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    older = manifest_of()
    older["versions"] = {**older["versions"], "torch": "1.0"}
    with pytest.raises(ValueError, match=r"versions\.torch '.*' -> '1\.0'"):
        open_run(tmp_path / "fk", older, about=ABOUT)
    layers = [CallableReward(nn.Bilinear(2, 2, 2), "layer") for _ in range(2)]
    open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[0]), about=ABOUT)
    open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[0]), about=ABOUT)
    with pytest.raises(ValueError, match=r"reward\.weights"):
        open_run(tmp_path / "layer" / "fk", manifest_of(reward=layers[1]), about=ABOUT)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (replace(SETTINGS, suite="official"), {}, r"suite\.name 'shapes' -> 'official'"),
        (SETTINGS, {"records": RECORDS[:3]}, r"suite\.num_prompts 4 -> 3, suite\.digest"),
        (SETTINGS, {"model": {**MODEL, "weights": "f"}}, r"model\.weights"),
        (replace(SETTINGS, seed=1), {}, "seed 0 -> 1"),
        (replace(SETTINGS, num_samples=1), {}, "num_samples 2 -> 1"),
        (replace(SETTINGS, num_steps=20), {}, "num_steps 10 -> 20"),
    ],
)
def test_runs_that_cannot_be_compared_do_not_share_a_folder(tmp_path, settings, changes, message):
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    other = manifest_of(settings.unsteered(), **changes)
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "unsteered", other, about=ABOUT)
    assert not (tmp_path / "unsteered").exists()
    (tmp_path / "unsteered").mkdir()
    (tmp_path / "unsteered" / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="holds a run of other settings"):
        refuse_mixed_runs(tmp_path)


def test_other_methods_and_rewards_share_a_folder(tmp_path):
    for settings in (SETTINGS, SETTINGS.unsteered(), replace(SETTINGS, method="best-of-k", batch_size=64)):
        open_run(tmp_path / settings.name, manifest_of(settings), about=ABOUT)
    refuse_mixed_runs(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "fk").mkdir()
    (tmp_path / "fk" / ".manifest.json.draft").write_text("{")
    open_run(tmp_path / "fk", manifest_of(), about=ABOUT)
    (tmp_path / "fk" / "manifest.json").unlink()
    (tmp_path / "fk" / "00000").mkdir()
    with pytest.raises(ValueError, match=r"holds files but no manifest\.json"):
        open_run(tmp_path / "fk", manifest_of(), about=ABOUT)


@pytest.mark.parametrize("text", ["[]", "{}", '{"settings": '])
def test_a_broken_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is (not the manifest of a run|damaged)"):
        read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_manifest(tmp_path / "new")


def test_the_model_is_described_by_its_weights_and_its_commit(tiny_sd):
    pipe = FKSteeringPipeline(tiny_sd(), reward=BRIGHTNESS)
    first = describe_model(pipe)
    expected = {"pipeline": "StableDiffusionPipeline", "scheduler": "DDIMScheduler", "eta": 1.0, "commit": None}
    expected |= {"dtype": "torch.float32", "device": "cpu"}
    assert {name: first[name] for name in expected} == expected
    pipe.unet.register_to_config(_name_or_path=f"cache/models--a--b/snapshots/{'0a' * 20}/unet")
    assert describe_model(pipe) == {**first, "commit": "0a" * 20}
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1e-3)
    assert describe_model(pipe)["weights"] != first["weights"]
