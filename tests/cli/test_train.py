"""`fk-reward train` from files to a reward, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from fk_reward.output_folder import hold_folder
from fk_reward.rewards import load_reward
from tests.tiny.phi3_vision import write_phi3_vision

COLOURS = ("red", "lime", "blue", "yellow", "black", "white")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def settings(tmp_path, backbone):
    """A YAML file that trains a few steps on six pairs, with a third of the prompts for validation."""
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{colour}.png")
    rows = [
        {"prompt": f"a {one} square", "chosen_path": f"{one}.png", "reject_path": f"{other}.png"}
        for one, other in zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"backbone: {backbone}\ndimension: alignment\ntrain_data: {tmp_path / 'pairs.json'}\n"
        f"output_dir: {tmp_path / 'out'}\nvalidation_fraction: 0.34\nnum_crops: 1\nlora_rank: 4\nlora_alpha: 8\n"
        "backbone_dtype: float32\nnum_train_epochs: 1\nuse_cpu: true\nreport_to: none\n"
    )
    return path


def test_train_resume_and_load(run, refused, settings, tmp_path, backbone):
    result = run("train", settings)
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert "weights are trained" in result.stderr
    reward = load_reward("llava-reward", adapter=tmp_path / "out", torch_dtype=torch.float32, num_crops=1)
    assert reward(Image.open(tmp_path / "red.png"), "a red square").isfinite().all()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_ties"] == 0
    assert "--resume" in refused("train", settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = run("train", settings, "--resume")
    assert again.exit_code == 0, again.output
    assert "is finished: nothing to do" in " ".join(again.stderr.split())
    assert "accuracy" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert run("train", settings, "--resume", "--num_train_epochs", "2").exit_code == 0
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--train_data", "nowhere.json"), "nowhere.json"),
        (("--objective", "hinge"), "objective must be one of"),
        (("--min_pixels", "4"), "no option min_pixels"),
        (("--validation_fraction", "0"), "eval_dataset"),
    ],
)
def test_refused(refused, settings, change, message):
    assert message in refused("train", settings, *change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: [", "not valid YAML"),
        ("- a", "must be a mapping"),
        ("extends: nowhere.yaml", "nowhere.yaml"),
        ("backbone: \xff", "run.yaml"),
        ("learning_rates: 3", "learning_rates"),
        ("learning_rate: fast", "learning_rate"),
    ],
)
def test_broken_settings_are_told(refused, settings, text, message):
    whole = settings.read_text() if text.startswith("learning") else ""
    settings.write_bytes((whole + text).encode("latin-1"))
    assert message in refused("train", settings)


def test_a_file_in_place_of_the_folder_and_a_folder_in_use(refused, settings, tmp_path):
    assert "is a file" in refused("train", settings, "--output_dir", settings)
    with hold_folder(tmp_path / "out"):
        assert f"{tmp_path / 'out'} is in use by process" in refused("train", settings)


def test_a_broken_image_stops_it_before_training(run, refused, settings, tmp_path):
    (tmp_path / "blue.png").write_bytes(b"no picture")
    message = refused("train", settings)
    assert "pairs.json:" in message
    assert "blue.png" in message
    assert not (tmp_path / "out").exists()


def test_flags_are_listed(run):
    result = run("train", "--list-flags")
    assert result.exit_code == 0
    assert "--lora_rank" in result.stdout


@pytest.mark.slow
def test_share_of_the_official_backbones(run):
    lines = run("trainable-share").stdout.splitlines()
    shares = {name: next(line for line in lines if name in line) for name in ("phi3_v", "qwen2_5_vl")}
    for name, numbers in {
        "phi3_v": ("251,670,528", "4,287,195,136", "5.87%"),
        "qwen2_5_vl": ("406,078,208", "8,153,247,488", "4.98%"),
    }.items():
        assert all(number in shares[name] for number in numbers)
    assert "251,670,528" not in run("trainable-share", "--no-cross-attention").stdout
