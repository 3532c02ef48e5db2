"""The command from end to end: one table, resumed, shared between processes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fk_reward.benchmarks.rankings.formats import READERS
from fk_reward.benchmarks.rankings.runs import RankingMethod, RankingRequest, parse_data, run_request, write_report
from fk_reward.benchmarks.rankings.summary import summarize_rankings
from fk_reward.output_folder import FolderInUseError, hold_folder
from fk_reward.rewards import REWARDS, load_reward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from tests.benchmarks.rankings.stage import WRITERS, save
from tests.command_line import run_command_line
from tests.tiny.scripted_judge import ScriptedEngine


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setitem(REWARDS, "brightness", "tests.cli.brightness:BRIGHTNESS")


@pytest.fixture
def copies(tmp_path):
    names = ("hpdv2", "hpdv3", "imagereward", "genai-bench", "mmrb2")
    return {name: WRITERS[name](tmp_path / name) for name in names}


def run(*arguments):
    return run_command_line("pair-accuracy", *arguments, "--device", "cpu")


def data_options(copies):
    return [option for name, path in copies.items() for option in ("--data", f"{name}={path}")]


def rows_of(out):
    rows = json.loads((out / "pair_accuracy.json").read_text())["rows"]
    return {(row["reward"], row["benchmark"]): row for row in rows}


def test_one_table(copies, tmp_path):
    out = tmp_path / "out"
    options = [*data_options(copies), "--reward", "brightness", "--reward", "-1*brightness", "--out", out]
    result = run(*options)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert len(rows) == 10
    expected = {"hpdv2": 4 / 5, "hpdv3": 1.0, "imagereward": 0.0, "genai-bench": 1.0, "mmrb2": 0.5}
    for name, accuracy in expected.items():
        assert rows["brightness", name]["accuracy"] == pytest.approx(accuracy), name
        assert rows["-1*brightness", name]["accuracy"] == pytest.approx(1 - accuracy)
    assert rows["brightness", "hpdv2"]["human_ties"] == 1
    assert rows["brightness", "hpdv2"]["own"] == pytest.approx(1 - (1 / 3 + 0) / 2)
    text = (out / "pair_accuracy.md").read_text()
    assert "| reward | hpdv2 [95 %], reward's ties | hpdv3" in text
    assert "0.800 [" in text


def test_what_is_scored_is_not_scored_again_and_more_may_be_added(copies, tmp_path, monkeypatch):
    out, asked = tmp_path / "out", []
    original = RankingMethod.answer

    def counted(self, indices, rankings):
        asked.extend((self.name, index) for index in indices)
        return original(self, indices, rankings)

    monkeypatch.setattr(RankingMethod, "answer", counted)
    options = ["--reward", "brightness", "--out", out, "--batch-size", "1"]
    assert run(*data_options({"hpdv2": copies["hpdv2"]}), *options).exit_code == 0
    assert asked == [("brightness: hpdv2", 0), ("brightness: hpdv2", 1)]
    before = rows_of(out)
    assert run(*data_options(copies), *options).exit_code == 0
    assert [name for name, _ in asked].count("brightness: hpdv2") == 2
    assert rows_of(out)["brightness", "hpdv2"] == before["brightness", "hpdv2"]
    assert len(rows_of(out)) == 5


def test_shards_are_put_together_by_a_report(copies, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*data_options({"hpdv2": copies["hpdv2"]}), "--reward", "brightness"]
    assert run(*options, "--out", whole).exit_code == 0
    for shard in ("0/2", "1/2"):
        assert run(*options, "--shard", shard, "--out", parts).exit_code == 0
    assert not (parts / "pair_accuracy.json").exists()
    assert run("--report", "--out", parts).exit_code == 0
    assert rows_of(parts) == rows_of(whole)


def test_a_killed_run_loses_nothing_and_asks_nothing_twice(copies, tmp_path, monkeypatch):
    out = tmp_path / "out"
    request = RankingRequest(data={"hpdv2": copies["hpdv2"]}, reward=("brightness",), batch_size=1, out=out)
    original = RankingMethod.answer
    calls = []

    def killed(self, indices, rankings):
        calls.append(tuple(indices))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, indices, rankings)

    monkeypatch.setattr(RankingMethod, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        run_request(request, device="cpu")
    cut = write_report(out).tables[0].rows[0]["hpdv2"]
    assert cut.endswith("(1 of 2)")
    run_request(request, device="cpu")
    assert calls == [(0,), (1,), (1,)]
    assert not write_report(out).tables[0].rows[0]["hpdv2"].endswith(")")


NUM_KILLS, NUM_PROMPTS = 10, 40


def many_prompts(folder):
    """Pairs of grey images, of which no two are alike."""
    levels = np.random.default_rng(0).permutation(2 * NUM_PROMPTS).reshape(-1, 2).tolist()
    rows = [
        {"prompt": f"prompt {i}", "path1": save(folder, f"{a}.png", a), "path2": save(folder, f"{b}.png", b)}
        for i, (a, b) in enumerate(levels)
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


def lines_of(out):
    """Answers by prompt, and how many lines there are."""
    lines = [json.loads(line) for path in out.rglob("results-*.jsonl") for line in path.read_text().splitlines()]
    return {line["index"]: line for line in lines}, len(lines)


def test_killed_ten_times(tmp_path, monkeypatch):
    """Half of the kills come before the reward has been asked, half when it has answered and nothing is written."""
    data, asked, kills = {"hpdv3": many_prompts(tmp_path / "data")}, [], []
    moments = np.random.default_rng(1).choice(np.arange(1, NUM_PROMPTS // 2 + 1), NUM_KILLS, replace=False).tolist()
    original = RankingMethod.answer

    def killed(self, indices, rankings):
        asked.append(tuple(indices))
        now = len(asked) in moments
        if now and len(kills) % 2:
            kills.append(indices)
            raise KeyboardInterrupt
        answers = original(self, indices, rankings)
        if now:
            kills.append(indices)
            raise KeyboardInterrupt
        return answers

    whole, cut = (
        RankingRequest(data=data, reward=("brightness",), batch_size=2, out=tmp_path / name)
        for name in ("whole", "cut")
    )
    run_request(whole, device="cpu")
    monkeypatch.setattr(RankingMethod, "answer", killed)
    while True:
        try:
            run_request(cut, device="cpu")
            break
        except KeyboardInterrupt:
            assert len(lines_of(cut.out)[0]) % 2 == 0, "a batch is there or not"
    assert len(kills) == NUM_KILLS
    assert len(asked) == NUM_PROMPTS // 2 + NUM_KILLS, "only what a kill took is asked again"
    assert lines_of(cut.out) == lines_of(whole.out) and lines_of(cut.out)[1] == NUM_PROMPTS
    assert rows_of(cut.out) == rows_of(whole.out)


def test_two_runs_at_once_in_one_folder(copies, tmp_path):
    request = RankingRequest(data={"hpdv2": copies["hpdv2"]}, reward=("brightness",), out=tmp_path / "out")
    with hold_folder(request.out), pytest.raises(FolderInUseError, match="is in use by process"):
        run_request(request, device="cpu")
    run_request(request, device="cpu")


def test_other_data_in_the_folder_are_refused(copies, tmp_path):
    out = tmp_path / "out"
    request = RankingRequest(data={"hpdv3": copies["hpdv3"]}, reward=("brightness",), out=out)
    run_request(request, device="cpu")
    rows = json.loads((copies["hpdv3"] / "test.json").read_text())
    rows[0]["prompt"] = "another"
    (copies["hpdv3"] / "test.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="results of other settings"):
        run_request(request, device="cpu")


def test_a_judge_that_compares_is_asked_for_every_pair(copies):
    """Grey images are equally red, so that this judge, asked in both orders, ties all pairs."""
    judge = PreferenceJudge(ScriptedEngine())
    answers = RankingMethod("judge", judge).answer([0, 1], READERS["hpdv2"](copies["hpdv2"]))
    assert [answer["margins"] for answer in answers] == [[[0, 1, 0.0], [0, 2, 0.0], [1, 2, 0.0]]] * 2
    row = summarize_rankings(answers, "hpdv2")
    assert (row["accuracy"], row["ties"], row["accuracy_without_ties"]) == (0.0, 1.0, None)


def test_a_reward_of_which_lower_is_better(copies):
    reward = load_reward(lambda images, prompts: -images.mean(dim=(1, 2, 3)))
    reward.card = type(reward.card)(**{**vars(reward.card), "higher_is_better": False})
    (answer,) = RankingMethod("dark", reward).answer([0], READERS["hpdv3"](copies["hpdv3"]))
    assert answer["scores"][0] > answer["scores"][1]
    assert torch.tensor(answer["scores"]).isfinite().all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "--data NAME=PATH, of hpdv2"),
        (["hpdv4=x"], "no benchmark 'hpdv4'; there are hpdv2"),
        (["hpdv2"], "name your copy of hpdv2"),
        (["hpdv2=x", "hpdv2=y"], "named twice"),
    ],
)
def test_refused_data(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_data(texts)


def test_nothing_to_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        write_report(tmp_path)
