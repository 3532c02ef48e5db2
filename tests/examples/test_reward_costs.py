"""Costs of rewards: counts against published ones, the table of the docs against the counts."""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.benchmarks import reward_costs
from fk_reward.benchmarks.rewards import costs
from fk_reward.benchmarks.rewards.costs import COST_COLUMNS, cost_row
from fk_reward.planning.full_size_rewards import FULL_SIZE, FullSize
from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import REWARDS, CallableReward, reward_card
from tests.examples.scripts import invoke

DOC = Path(__file__).parents[2] / "docs" / "rewards.md"
PUBLISHED_PARAMETERS = {
    "clipscore": 427_616_513,  # 427.62 million, docs/model_profile.csv of github.com/mlfoundations/open_clip
    "hpsv2": 986_109_441,  # 986.11 million, as before
    "llava-score": 7_063_427_072,  # the hub's count for llava-hf/llava-1.5-7b-hf
    "shieldgemma-2": 4_300_079_472,  # for google/gemma-3-4b-it
    "vlm-judge": 4_437_815_808,  # for Qwen/Qwen3-VL-4B-Instruct
    "vlm-judge-preference": 8_292_166_656,  # half of `total_size` in the index of Qwen/Qwen2.5-VL-7B-Instruct
    "vqascore": 2_127_532_032,  # for Qwen/Qwen3-VL-2B-Instruct
}
IMAGE_TOWERS = {"aesthetic": 162.03}  # 10⁹ operations of ViT-L-14's image tower, docs/model_profile.csv, as before


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert round(cost_row(name, flops=False)["parameters"] * 1e6) == PUBLISHED_PARAMETERS[name]


def test_one_layer_more_is_noticed(monkeypatch):
    sizes = {"vision_config": {"num_hidden_layers": 25}}
    entry = FULL_SIZE["clipscore"].build
    wrong = FullSize(lambda: entry.func({**entry.args[0], **sizes}))
    monkeypatch.setitem(FULL_SIZE, "clipscore", wrong)
    with pytest.raises(AssertionError):
        test_parameters_are_as_many_as_published("clipscore")


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_operations_are_as_many_as_published(name):
    assert cost_row(name)["gflops"] == pytest.approx(IMAGE_TOWERS[name], rel=1e-3)


@pytest.mark.parametrize("name", REWARDS)
def test_memory_on_the_card_is_that_of_the_weights(name):
    row = cost_row(name, flops=False)
    if "parameters" not in row:
        pytest.skip("not computed")
    for amount, unit, dtype in re.findall(r"([\d.]+) (GB|MB) in (\w+)", reward_card(name).memory):
        size = row["parameters"] * 1e6 * getattr(torch, dtype).itemsize / {"GB": 1e9, "MB": 1e6}[unit]
        assert size == pytest.approx(float(amount), rel=0.06)


def test_a_wrong_memory_is_noticed(monkeypatch):
    monkeypatch.setattr(costs, "_full_size_costs", lambda *_, **__: {"parameters": 500.0})
    with pytest.raises(AssertionError):
        test_memory_on_the_card_is_that_of_the_weights("clipscore")


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_dtype_is_that_of_the_loader(name):
    module, attribute = REWARDS[name].split(":")
    signature = inspect.signature(getattr(import_module(module), attribute).build)
    if (default := signature.parameters["torch_dtype"].default) is not None:
        assert FULL_SIZE[name].dtype == default


def test_no_reward_is_left_out():
    not_computed = {name for name in REWARDS if not is_at_hand(name) and name not in FULL_SIZE}
    of_other_sizes = {"geneval", "imageguard", "nudenet", "ocr", "vlm-judge-llavaguard"}
    assert not_computed - of_other_sizes == {"llava-reward"}, "its weights are the caller's"


def table_of_the_docs():
    """Cells of the table, by reward."""
    text = DOC.read_text(encoding="utf-8").split("<!-- costs")[1].split("<!-- end of costs")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_the_docs_have_all_rewards():
    assert set(table_of_the_docs()) == set(REWARDS), (
        "write it anew: python -m examples.benchmarks.reward_costs --markdown"
    )


@pytest.mark.parametrize("name", REWARDS)
def test_the_docs_have_the_sizes(name):
    columns = [column for column in COST_COLUMNS if column.key != "gflops"]
    cells = [cell for cell, column in zip(table_of_the_docs()[name], COST_COLUMNS, strict=True) if column in columns]
    assert cells == [column.cell(cost_row(name, flops=False)) for column in columns]


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
def test_the_docs_have_the_operations(name):
    assert table_of_the_docs()[name] == [column.cell(cost_row(name)) for column in COST_COLUMNS]


def run(*arguments):
    return invoke(reward_costs.main, *arguments)


def test_command(tmp_path):
    options = ["--reward", "shapes-clipscore", "--reward", "llava-reward", "--out", tmp_path, "--batch-size", "1,2"]
    printed = run(*options, "--measure", "--num-repetitions", 2, "--markdown")
    content = json.loads((tmp_path / "reward_costs.json").read_text())
    assert [row["reward"] for row in content["costs"]] == ["shapes-clipscore", "llava-reward"]
    assert [(row["reward"], row["batch_size"]) for row in content["times"]] == [
        ("shapes-clipscore", 1),
        ("shapes-clipscore", 2),
    ]
    for row in content["times"]:
        assert 0 < row["milliseconds_low"] <= row["milliseconds"] <= row["milliseconds_high"]
        assert row["peak_gb"] is None, "not measured on a CPU"
    assert printed == (tmp_path / "reward_costs.md").read_text()
    assert "not computed: that of the backbone" in printed


def test_full_size_is_timed_on_random_weights_if_asked(tmp_path, monkeypatch):
    layer = nn.Linear(3, 1)
    tiny = CallableReward(lambda images, prompts: layer(images.mean(dim=(2, 3))).squeeze(1), "clipscore")
    monkeypatch.setitem(FULL_SIZE, "clipscore", FullSize(lambda: tiny))
    options = ["--reward", "clipscore", "--out", tmp_path, "--measure", "--num-repetitions", 2]
    assert "random" not in run(*options)
    assert "random" in run(*options, "--full-size")


def test_a_batch_that_does_not_fit_is_said(monkeypatch):
    def small_device(run, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(costs, "peak_memory", small_device)
    settings = costs.TimeSettings(batch_sizes=(1,), num_repetitions=2)
    rows = list(costs.time_rows(["shapes-verifier"], settings))
    assert [row["note"] for row in rows] == ["out of memory"]
    assert "milliseconds" not in rows[0]


def test_weights_that_do_not_fit_are_said(monkeypatch):
    def too_large():
        raise torch.OutOfMemoryError

    monkeypatch.setitem(FULL_SIZE, "clipscore", FullSize(too_large))
    rows = list(costs.time_rows(["clipscore"], costs.TimeSettings(full_size=True)))
    assert rows == [{"reward": "clipscore", "note": "the weights do not fit into memory"}]


@pytest.mark.parametrize("options", [["--reward", "beauty"], ["--batch-size", "0"]])
def test_mistakes_are_told(options, tmp_path):
    invoke(reward_costs.main, *options, "--out", tmp_path, code=2)
