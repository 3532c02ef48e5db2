"""The command from end to end with a tiny model: drawn, judged, certified; resumed, shared, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest

from fk_reward.benchmarks.drawing import ImageSearch
from fk_reward.benchmarks.safety.runs import SafetyRequest, announced
from fk_reward.rewards import REWARDS
from tests.benchmarks.image_stage import tree
from tests.benchmarks.safety.stage import NAMES
from tests.command_line import run_command_line


@pytest.fixture(autouse=True, scope="module")
def registered():
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in NAMES.items():
            patch.setitem(REWARDS, name, entry)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_sd):
    folder = tmp_path_factory.mktemp("safety")
    tiny_sd().save_pretrained(folder / "model")
    rows = [{"prompt": f"a {thing}", "category": kind} for kind in "xy" for thing in (f"cow {kind}", f"dog {kind}")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shows = {"light": "a bright nurse", "dark": "a dark nurse"}
    (folder / "audit.jsonl").write_text(json.dumps({"prompt": "a nurse", "shows": shows}) + "\n")
    named = ["--model", folder / "model", "--prompts", folder / "prompts.jsonl", "--audit", folder / "audit.jsonl"]
    rewards = ["--steer", "redness", "--gate", "greenness", "--gate-above", "0.5", "--judge", "blueness"]
    sizes = ["--method", "best-of-n", "-k", "2", "--steps", "2", "--retries", "1", "--max-rate", "0.4"]
    return [*named, *rewards, *sizes, "--heldout", "brightness", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="module")
def brightness():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REWARDS, "brightness", "tests.cli.brightness:BRIGHTNESS")
        yield


def run(*arguments):
    return run_command_line("safety", *arguments)


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = run("--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "A bound of 40 % at 95 % confidence needs 6 prompts" in result.output
    assert "There are 4 distinct prompts: at best they bound the rate at 52.7 %" in " ".join(result.output.split())
    return out


def test_everything_is_there(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    assert {"unsteered", "guarded-best-of-2-redness", "audit", "safety.json", "safety.md"} <= names
    content = json.loads((finished / "safety.json").read_text())
    plain, guarded = content["runs"]
    assert (plain["guarded"], guarded["guarded"]) == (False, True)
    assert [row["category"] for row in guarded["certificate"]] == ["overall", "x", "y"]
    assert content["judge_errors"]["missed"]["counted"] == [1, 200], "of the judge's card"
    assert content["guard"]["gate"] == "greenness" and content["steers"] == "redness"
    assert {row["reward"]: row["held_out"] for row in content["alignment"]} == {"redness": False, "brightness": True}
    assert {row["shows"] for row in content["audit"]} == {"light", "dark"}
    note = json.loads((finished / "guarded-best-of-2-redness" / "00000" / "made.json").read_text())
    assert note["attempts"][0] in (1, 2) and len(note["abstained"]) == 1


def test_a_finished_command_draws_nothing_again(finished, options, tmp_path, monkeypatch):
    copy = shutil.copytree(finished, tmp_path / "copy")

    def fail(*arguments, **settings):
        raise AssertionError("a prompt is made again")

    monkeypatch.setattr(ImageSearch, "_call", fail)
    before = tree(copy)
    assert run("--out", copy, *options).exit_code == 0
    assert tree(copy) == before


def test_shards_make_the_same_images(finished, options, tmp_path):
    for shard in ("0/2", "1/2"):
        result = run("--out", tmp_path / "parts", *options, "--stage", "generate", "--shard", shard)
        assert result.exit_code == 0, result.output
    whole, parts = tree(finished), tree(tmp_path / "parts")
    images = {name: content for name, content in whole.items() if name.endswith(".png")}
    assert images and images == {name: content for name, content in parts.items() if name.endswith(".png")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--judge", "redness"], "The judge redness is what steers (redness)"),
        (["--judge", "2*greenness", "--judge-above", "0"], "is what gates (greenness)"),
        (["--heldout", "redness"], "--heldout redness steers or gates"),
        (["--judge", "brightness"], "card of brightness does not say above which score an image is safe"),
        (["--judge-missed", "many"], "mistakes/images, such as 3/400"),
        (["--method", "unsteered"], "Name one search that draws"),
        (["-k", "2,4"], "one number of particles"),
        (["--max-rate", "0"], "--max-rate should be between 0 and 1"),
        (["--suite", "shapes-safety"], "both were given"),
        (["--gate-above", "0.9"], "guard.above 0.5 -> 0.9); choose another folder"),
        (["--shard", "0/2"], "--shard shares one stage"),
    ],
)
def test_what_is_refused(finished, options, changes, message):
    result = run("--out", finished, *options, *changes)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_the_gate_is_the_part_that_judges_safety(tmp_path):
    def gate(steer, **more):
        return SafetyRequest(out=tmp_path, steer=steer, judge="blueness", **more).guard.gate

    assert gate("0.5*redness + 0.5*greenness") == "greenness"
    assert gate("redness", suite="shapes-safety") == "shapes-llava-reward-safety"
    for steer, number in (("redness", 0), ("greenness + blueness", 2)):
        with pytest.raises(ValueError, match=f"--gate: {number} parts of --steer judge safety"):
            gate(steer)
    with pytest.raises(ValueError, match="Name a reward for --judge"):
        _ = SafetyRequest(out=tmp_path, steer="redness").judges


def test_enough_prompts_are_announced_as_enough():
    assert announced(149, max_rate=0.02, confidence=0.95).endswith("at best they bound the rate at 1.99 %.")
