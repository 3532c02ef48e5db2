"""`fk-reward doctor`."""

from __future__ import annotations

import json

import pytest

from fk_reward.rewards.doctor import drawn_specimens
from fk_reward.rewards.inputs import to_pil


@pytest.fixture
def files(tmp_path):
    """Command-line arguments of the drawn specimens as files."""
    specimens = drawn_specimens(64)
    arguments = []
    for index, (image, prompt) in enumerate(zip(to_pil(specimens.images), specimens.prompts, strict=True)):
        image.save(tmp_path / f"{index}.png")
        arguments += ["--image", tmp_path / f"{index}.png", "-p", prompt]
    return arguments


def test_a_sound_reward(run):
    result = run("doctor", "shapes-verifier", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "No probe failed." in result.stdout


def test_a_reward_that_reads_no_prompt_has_exit_code_1(run):
    result = run("doctor", "brightness", "--device", "cpu", "--size", 64, "--json")
    assert result.exit_code == 1, result.output
    record = json.loads(result.stdout)
    outcomes = {entry["probe"]: entry["outcome"] for entry in record["findings"]}
    assert record["healthy"] is False
    assert outcomes["prompt"] == "fail"
    assert outcomes["batch"] == "pass"


def test_the_table_says_what_to_do(run):
    result = run("doctor", "brightness", "--device", "cpu", "--size", 64, "--probe", "prompt")
    assert result.exit_code == 1
    assert "blind_to" in result.stdout
    assert "Failed: prompt." in result.stdout


def test_own_images_and_options(run, files):
    options = ["--probe", "scores", "--probe", "prompt", "--option", "strict=False", "--json", "--device", "cpu"]
    result = run("doctor", "shapes-verifier", *files, *options)
    assert result.exit_code == 0, result.output
    assert [entry["probe"] for entry in json.loads(result.stdout)["findings"]] == ["scores", "prompt"]


def test_an_adapter_by_its_folder(run):
    options = ["--adapter", "shapes-llava-reward-alignment", "--backbone", "shapes-mllm", "--option", "batch_size=8"]
    options += ["--probe", "scores", "--probe", "prompt", "--probe", "adapter"]
    result = run("doctor", "llava-reward", *options, "--dtype", "float32", "--size", 64, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "colour"], "Unknown probe 'colour'"),
        (["--option", "strict"], "NAME=VALUE"),
        (["--option", "strength=3"], "Options that it accepts: strict"),
        (["--prompt", "a"], "go with --image"),
        (["--size", "4"], "--size"),
    ],
)
def test_mistakes(refused, arguments, message):
    assert message in refused("doctor", "shapes-verifier", "--device", "cpu", *arguments)
