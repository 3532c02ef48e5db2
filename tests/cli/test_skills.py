"""`fk-reward skills`: from prompts to a merged adapter, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fk_reward.training.skills import read_adapter
from fk_reward.training.skills.prompts import read_prompt_lines
from tests.rewards.vlm_judge.endpoint import Endpoint, completion

TEMPLATES = "n = two | three\nthing = cat | dog\n{n} {thing}s"


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("two cats\nthree dogs\n")
    return tmp_path / "prompts.txt"


def test_all_steps(run, model, prompts, tmp_path):
    draw = ("--model", model, "--reward", "brightness", "--num-candidates", 2, "--num-inference-steps", 2)
    result = run("skills", "draw", prompts, "--out", tmp_path / "images", *draw)
    assert result.exit_code == 0, result.output
    assert f"2 prompts in {tmp_path / 'images'}" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "images/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["reward"] is not None for row in rows)
    for name, more in (("a", ("--keep", "best")), ("b", ("--keep", "all", "--seed", 1, "--lora-alpha", 8))):
        train = ("--model", model, "--max-steps", 1, "--rank", 2, "--target-modules", "to_q", "to_k", *more)
        result = run("skills", "train", tmp_path / "images", "--out", tmp_path / name, *train)
        assert result.exit_code == 0, result.output
        assert ("2 images of 2 prompts" if name == "a" else "4 images of 2 prompts") in result.stdout
    weights = ("--weight", 0.25, "--weight", 2)
    both = (tmp_path / "a", tmp_path / "b")
    assert run("skills", "merge", *both, "--out", tmp_path / "ab", *weights).exit_code == 0
    parts, merged = [read_adapter(folder) for folder in both], read_adapter(tmp_path / "ab")
    for name, layer in merged.items():
        expected = 0.25 * parts[0][name].delta() + 2 * parts[1][name].delta()
        torch.testing.assert_close(layer.delta(), expected)
    arguments = (*both, "--out", tmp_path / "whole", *weights, "--into-weights", "--model", model)
    assert run("skills", "merge", *arguments).exit_code == 0
    whole, base = (StableDiffusionPipeline.from_pretrained(str(path)) for path in (tmp_path / "whole", model))
    name, layer = next(iter(merged.items()))
    path = name.removeprefix("unet.") + ".weight"
    change = whole.unet.get_parameter(path) - base.unet.get_parameter(path)
    torch.testing.assert_close(change, layer.delta(), rtol=1e-3, atol=1e-5)
    assert not (tmp_path / "whole/pytorch_lora_weights.safetensors").exists()


def test_prompts_by_templates_and_of_shapes(run, tmp_path):
    (tmp_path / "t.txt").write_text(TEMPLATES)
    result = run("skills", "prompts", tmp_path / "p.txt", "--templates", tmp_path / "t.txt")
    assert "4 prompts in" in result.stdout
    assert sorted(read_prompt_lines(tmp_path / "p.txt"))[0] == "three cats"
    assert run("skills", "prompts", tmp_path / "s.txt", "--shapes", "counting", "--num-prompts", 5).exit_code == 0
    assert len(read_prompt_lines(tmp_path / "s.txt")) == 5


def test_prompts_by_a_language_model(run, tmp_path):
    endpoint = Endpoint()
    try:
        endpoint.script = [(200, completion("1. three dogs in a park\n2. two cats on a sofa"), 0.0)]
        (tmp_path / "e.txt").write_text("two cats on a sofa\n")
        line = ("--llm", "writer", "--base-url", endpoint.url, "--description", "counting", "--num-prompts", 1)
        result = run("skills", "prompts", tmp_path / "p.txt", *line, "--examples", tmp_path / "e.txt")
    finally:
        endpoint.shutdown()
    assert result.exit_code == 0, result.output
    assert read_prompt_lines(tmp_path / "p.txt") == ["three dogs in a park"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "Give one source of prompts"),
        (("--shapes", "counting", "--llm", "x"), "Give one source of prompts"),
        (("--shapes", "counting", "--description", "x"), "go with --llm"),
        (("--llm", "x"), "--llm needs --description TEXT and --examples FILE"),
        (("--shapes", "count"), "task must be one of"),
    ],
)
def test_bad_sources_of_prompts(refused, tmp_path, line, message):
    assert message in refused("skills", "prompts", tmp_path / "p.txt", *line)


def test_a_file_of_prompts_is_not_replaced(refused, tmp_path, prompts):
    assert "add --overwrite" in refused("skills", "prompts", prompts, "--shapes", "counting")


def test_rewards_and_experts_are_not_mixed(refused, tmp_path):
    line = ("skills", "merge", "shapes-llava-reward-alignment", tmp_path, "--out", tmp_path / "out")
    assert "others are not" in refused(*line)


def test_rewards_are_merged(run, tmp_path):
    names = [f"shapes-llava-reward-{dimension}" for dimension in ("alignment", "fidelity")]
    result = run("skills", "merge", *names, "--out", tmp_path / "overall", "--rank", 4)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "overall/reward_config.json").read_text())["dimension"] == "overall"
