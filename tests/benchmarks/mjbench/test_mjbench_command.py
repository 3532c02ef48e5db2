"""`fk-reward mjbench` from questions to tables, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from fk_reward.benchmarks.runner import find_share
from fk_reward.cli.mjbench import parse_thresholds
from fk_reward.rewards import CallableReward
from tests.benchmarks.mjbench.stage import grey

SHAPES = ("mjbench", "--suite", "shapes", "--reward", "brightness", "--num-pairs", 14)


@pytest.fixture
def pairs(tmp_path):
    """Three pairs in a file, of which brightness gets two right."""
    for level in (10, 200):
        grey(level).save(tmp_path / f"{level}.png")
    rows = [
        {"caption": "light", "image0": "200.png", "image1": "10.png", "label": 0, "info": "plain"},
        {"caption": "light", "image0": "10.png", "image1": "200.png", "label": 1, "info": "plain"},
        {"caption": "dark", "image0": "10.png", "image1": "200.png", "label": 0, "info": "hard"},
    ]
    (tmp_path / "alignment.json").write_text(json.dumps(rows))
    return tmp_path


def test_official_suite_from_a_folder(run, pairs, tmp_path):
    out = tmp_path / "out"
    result = run("mjbench", "--reward", "brightness", "--data", pairs, "--out", out, "--sweep", "0,0.8")
    assert result.exit_code == 0, result.output
    content = json.loads((out / "mjbench.json").read_text())
    rows = {row["subset"]: row["accuracy"] for row in content["rows"]}
    assert rows == {"overall": pytest.approx(2 / 3), "hard": 0, "plain": 1}
    assert [row["ties"] for row in content["sweep"]] == [0, 1]
    text = (out / "mjbench.md").read_text()
    assert "| brightness | 0.667 | 0.667 | this run |" in text
    assert "| ImageReward | 0.509 | 0.647 | Chen et al. 2024" in text
    assert "3 of 3 questions" in result.stdout
    assert "ImageReward" in result.stdout


@pytest.mark.parametrize("perspective", ["alignment", "safety", "quality", "bias"])
def test_shapes_suite(run, tmp_path, perspective):
    result = run(*SHAPES, "--perspective", perspective, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "mjbench.json").read_text())
    assert content["num_done"] == 14
    assert content["published"] == [], "rendered images are not compared with figures of real ones"
    assert ("nds" in content["rows"][0]) == (perspective == "bias")


def test_shards_and_report_give_what_one_process_gives(run, tmp_path):
    for shard in ("1/2", "0/2"):
        result = run(*SHAPES, "--shard", shard, "--out", tmp_path / "two")
        assert result.exit_code == 0, result.output
        assert not (tmp_path / "two" / "mjbench.json").exists(), "a shard does not report"
    assert run("mjbench", "--report", "--out", tmp_path / "two").exit_code == 0
    assert run(*SHAPES, "--out", tmp_path / "one").exit_code == 0
    one, two = (json.loads((tmp_path / name / "mjbench.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_an_unfinished_run_says_so(run, tmp_path):
    run(*SHAPES, "--shard", "1/2", "--out", tmp_path)
    assert "7 of 14 questions" in run("mjbench", "--report", "--out", tmp_path).stdout


def test_a_report_may_have_another_tie_threshold_and_scores_nothing(run, tmp_path):
    run(*SHAPES, "--out", tmp_path)
    before = (tmp_path / "results-0-of-1.jsonl").read_bytes()
    assert run(*SHAPES, "--tie-threshold", "1", "--out", tmp_path).exit_code == 0
    assert json.loads((tmp_path / "mjbench.json").read_text())["rows"][0]["ties"] == 1
    assert (tmp_path / "results-0-of-1.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--perspective", "quality"), "perspective 'alignment' -> 'quality'"),
        (("--seed", 1), "seed 0 -> 1"),
        (("--num-pairs", 15), "num_questions 14 -> 15"),
        (("--reward", "shapes-verifier"), "reward 'brightness' -> 'shapes-verifier'"),
    ],
)
def test_the_folder_of_another_run_is_refused(run, refused, tmp_path, change, message):
    assert run(*SHAPES, "--out", tmp_path).exit_code == 0
    told = refused(*SHAPES, *change, "--out", tmp_path)
    assert message in told
    assert "choose another folder" in told


def test_other_data_under_the_same_name_are_refused(run, refused, pairs, tmp_path):
    options = ("mjbench", "--reward", "brightness", "--data", pairs, "--out", tmp_path / "out")
    assert run(*options).exit_code == 0
    rows = json.loads((pairs / "alignment.json").read_text())
    rows[0]["label"] = 1
    (pairs / "alignment.json").write_text(json.dumps(rows))
    assert "digest" in refused(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reward", "brightness", "--perspective", "beauty"), "perspective should be one of"),
        (("--reward", "brightness", "--suite", "circles"), "--suite should be official or shapes"),
        (("--reward", "brightness", "--data", "nowhere/at/all"), "No file or folder nowhere/at/all"),
        (("--reward", "brightnes"), "brightness"),
        (("--reward", "brightness", "--suite", "shapes"), "--data and --revision are for the official suite"),
        ((), "Name a --reward"),
        (("--reward", "brightness", "--num-pairs", 0), "--num-pairs should be at least 1"),
        (("--reward", "brightness", "--seed", -1), "--seed should be at least 0"),
        (("--reward", "brightness", "--batch-size", 0), "--batch-size should be at least 1"),
        (("--reward", "brightness", "--tie-threshold", -0.5), "--tie-threshold should be"),
        (("--reward", "brightness", "--adapter", "a"), "not both"),
        (("--report",), "holds no results"),
    ],
)
def test_refused(refused, pairs, tmp_path, options, message):
    assert message in refused("mjbench", "--data", pairs, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_wrong_row_ends_the_run_with_its_place(refused, pairs):
    rows = json.loads((pairs / "alignment.json").read_text())
    (pairs / "alignment.json").write_text(json.dumps([*rows[:2], {**rows[2], "label": "tie"}]))
    told = refused("mjbench", "--reward", "brightness", "--data", pairs, "--out", pairs / "out")
    assert "alignment.json:3: label should be 0 or 1" in told


def test_thresholds_as_typed():
    assert parse_thresholds(None) is None
    assert parse_thresholds("0,0.5") == (0.0, 0.5)
    for text in ("a", "-1", "nan", "inf", ""):
        with pytest.raises(ValueError, match="--sweep should be numbers"):
            parse_thresholds(text)


def test_one_process_does_everything_and_a_shard_its_part():
    alone, part = find_share(None, "cpu"), find_share((1, 4), "cpu")
    assert (alone.shard, alone.leads) == ((0, 1), True)
    assert (part.shard, part.leads) == ((1, 4), False)
    part.wait()  # nobody to wait for


def test_processes_that_accelerate_does_not_see_are_refused(monkeypatch):
    find_share(None, "cpu")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but accelerate sees 1"):
        find_share(None, "cpu")


def test_results_of_other_weights_are_refused(run, refused, tmp_path, monkeypatch):
    layer = torch.nn.Linear(1, 1)

    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, images, captions):
            return self.layer(images.mean(dim=(1, 2, 3))[:, None])[:, 0].detach()

    monkeypatch.setattr(
        "fk_reward.benchmarks.mjbench.runs.load_reward", lambda name: CallableReward(Weighted(), "brightness")
    )
    assert run(*SHAPES, "--out", tmp_path).exit_code == 0
    assert run(*SHAPES, "--out", tmp_path).exit_code == 0
    with torch.no_grad():
        layer.bias.add_(1)
    assert "weights" in refused(*SHAPES, "--out", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares", [pytest.param((5, 4), id="two"), pytest.param((4, 4, 3), id="three", marks=pytest.mark.long)]
)
def test_processes_of_accelerate_give_what_one_gives(run, tmp_path, shares):
    """Shares are unequal."""
    options = (
        "mjbench",
        "--suite",
        "shapes",
        "--num-pairs",
        str(sum(shares)),
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--out",
    )
    launch = (
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        f"--num_processes={len(shares)}",
        "--main_process_port=0",
    )
    command = [sys.executable, *launch, "-m", "fk_reward.cli", *options, str(tmp_path / "all")]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    assert run(*options, tmp_path / "one").exit_code == 0
    lines = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "all").glob("*.jsonl")}
    assert lines == {f"results-{index}-of-{len(shares)}.jsonl": number for index, number in enumerate(shares)}
    one, together = (json.loads((tmp_path / name / "mjbench.json").read_text()) for name in ("one", "all"))
    assert one == together
