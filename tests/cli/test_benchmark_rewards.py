"""`fk-reward benchmark rewards`: counts and times in one command, below the command that runs benchmarks of images."""

from __future__ import annotations

import json

import pytest
from torch import nn

from fk_reward.cli.app import build_app, command_name
from fk_reward.cli.benchmark_rewards import _names, benchmark_rewards
from fk_reward.cli.geneval import geneval
from fk_reward.planning.full_size_rewards import FULL_SIZE, FullSize
from fk_reward.rewards import REWARDS, CallableReward

QUICK = ("benchmark", "rewards", "--num-repetitions", "2", "--batch-size", "1,2")


def test_counts_and_times(run):
    content = json.loads(run(*QUICK, "-r", "shapes-clipscore", "--json").stdout)
    (row,) = content["counted"]
    assert row["parameters"] > 1 and row["gflops"] > 0
    assert 0 < row["known"] < 1000 and row["attention_calls"] > 1
    assert [(timed["batch_size"], timed["image_size"]) for timed in content["timed"]] == [(1, 64), (2, 64)]
    assert all(timed["milliseconds"] > 0 for timed in content["timed"])


def test_tables(run):
    output = run(*QUICK, "-r", "shapes-verifier", "--markdown").stdout
    counted = next(line for line in output.splitlines() if "no network of PyTorch" in line)
    name, *numbers, note = (cell.strip() for cell in counted.strip("|").split("|"))
    assert (name, note) == ("`shapes-verifier`", "no network of PyTorch")
    assert set(numbers) == {"-"}
    assert "| `shapes-verifier` | trained | 64 | 2 |" in output
    assert "Timed on cpu" in run(*QUICK, "-r", "shapes-verifier").stdout


def test_full_size_means_all_rewards():
    assert _names(None, full_size=True) == list(REWARDS)
    assert {name.split("-")[0] for name in _names(None, full_size=False)} == {"shapes"}


def test_random_weights_are_timed_on_a_cpu_only_if_asked(run, monkeypatch):
    layer = nn.Linear(3, 1)
    tiny = CallableReward(lambda images, prompts: layer(images.mean(dim=(2, 3))).squeeze(1), "clipscore")
    monkeypatch.setitem(FULL_SIZE, "clipscore", FullSize(lambda: tiny))
    options = (*QUICK, "-r", "clipscore", "--side", "32", "--json")
    assert json.loads(run(*options).stdout)["timed"] == []
    timed = json.loads(run(*options, "--measure").stdout)["timed"]
    assert [(row["weights"], row["image_size"]) for row in timed] == [("random", 32)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-r", "beauty"), "Unknown reward 'beauty'"),
        (("--json", "--markdown"), "Choose one"),
        (("--num-repetitions", "1"), "--num-repetitions"),
        (("--batch-size", "0"), "batch_size"),
        (("--keep", "3"), "Unknown option"),
    ],
)
def test_mistakes_are_told(refused, options, message):
    assert message in refused("benchmark", "rewards", *options)


def test_the_command_above_it_is_what_it_was(refused):
    for tokens, function in (
        (["benchmark", "--suite", "shapes", "--out", "x"], geneval),
        (["benchmark", "rewards", "--full-size"], benchmark_rewards),
    ):
        command, _, _ = build_app(tokens).parse_args(tokens, exit_on_error=False, print_error=False)
        assert command.__name__ == function.__name__
    assert "--search" in refused("benchmark", "--suite", "shapes", "--out", "x", "--keep", "3")
    assert command_name(["--help"]) == ""
