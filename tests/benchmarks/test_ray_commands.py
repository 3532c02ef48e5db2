"""Every benchmark shares its work by the same options, and Ray's actors make what one process makes."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module

import numpy as np
import pytest

from fk_reward.cli.options import with_options
from fk_reward.output_folder import hold_folder
from fk_reward.rewards import REWARDS
from tests.benchmarks.image_stage import tree
from tests.benchmarks.rankings.stage import WRITERS
from tests.benchmarks.ray_in_process import ray_in_process
from tests.command_line import run_command_line

IMAGES = ("--model", "MODEL", "--steps", "2", "--num-prompts", "3", "--stage", "generate")
COMMANDS = {
    "geneval": ("--suite", "shapes", *IMAGES, "--num-samples", "1", "-k", "2", "--reward", "shapes-verifier"),
    "scaling": ("--suite", "shapes", *IMAGES, "--num-samples", "2", "--budgets", "4", "--reward", "shapes-verifier"),
    "safety": ("--prompts", "PROMPTS", *IMAGES[:4], *IMAGES[6:], "--audit", "AUDIT", "--audit-reward", "brightness")
    + ("--steer", "shapes-verifier", "--gate", "brightness", "--gate-above", "0.45", "--judge", "shapes-clipscore")
    + ("--judge-above", "0.2", "--method", "best-of-n", "-k", "2", "--retries", "1"),
    "mjbench": ("--suite", "shapes", "--num-pairs", "9", "--batch-size", "2", "--reward", "brightness"),
    "pair-accuracy": ("--data", "hpdv2=HPDV2", "--data", "hpdv3=HPDV3", "-r", "brightness", "-r", "-1*brightness")
    + ("--batch-size", "1"),
    "record": ("a red circle", "a star", *IMAGES[:4], "--num-seeds", "3", "--batch-size", "2", "-r", "brightness"),
    "record --keep-predictions": ("a star", *IMAGES[:2], "--steps", "4", "--num-seeds", "3", "--batch-size", "2")
    + ("-r", "brightness", "--keep-predictions", "0.9"),
}


@pytest.fixture(autouse=True)
def brightness(monkeypatch):
    monkeypatch.setitem(REWARDS, "brightness", "tests.cli.brightness:BRIGHTNESS")


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_sd):
    """What stands for a word of the commands."""
    folder = tmp_path_factory.mktemp("files")
    tiny_sd().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("a photo of a star\na photo of a red circle\n")
    shows = {color: f"a photo of a {color} star" for color in ("red", "blue")}
    (folder / "audit.jsonl").write_text(json.dumps({"prompt": "a photo of a star", "shows": shows}) + "\n")
    for name in ("hpdv2", "hpdv3"):
        (folder / name).mkdir()
        WRITERS[name](folder / name)
    named = {"MODEL": "model", "PROMPTS": "prompts.txt", "AUDIT": "audit.jsonl", "HPDV2": "hpdv2", "HPDV3": "hpdv3"}
    return {word: str(folder / name) for word, name in named.items()}


def run(command, files, out, *more):
    words = [files.get(word, word) for word in COMMANDS[command]]
    words = [f"{word.partition('=')[0]}={files[word.partition('=')[2]]}" if "=HPD" in word else word for word in words]
    return run_command_line(command.split()[0], *words, "--device", "cpu", "--out", out, *more)


def facts(out):
    """What was drawn and scored: images, records and answers, whichever process wrote them, without seconds."""
    files = tree(out)
    found = {name: content for name, content in files.items() if name.endswith((".png", "metadata.jsonl"))}
    found |= {path.name: {**np.load(path)} for path in out.glob("*.npz")}
    for path in sorted(out.rglob("results-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        answers = found.setdefault(path.parent.relative_to(out).as_posix(), {})
        answers |= {line["index"]: {key: line[key] for key in line if key != "seconds"} for line in lines}
    found |= {name: json.loads(content) for name, content in files.items() if name.endswith("mjbench.json")}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_actors_make_what_one_process_makes(command, files, tmp_path, monkeypatch):
    alone = run(command, files, tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    made = ray_in_process()
    monkeypatch.setitem(sys.modules, "ray", made)
    shared = run(command, files, tmp_path / "shared", "--ray-workers", "2")
    assert shared.exit_code == 0, shared.output
    assert made.actors and made.killed == made.actors
    expected, found = facts(tmp_path / "alone"), facts(tmp_path / "shared")
    assert len(expected) > 0 and found.keys() == expected.keys()
    np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("command", [name for name in COMMANDS if " " not in name])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ray-workers", "0"], "--ray-workers should be at least 1"),
        (["--ray-workers", "2", "--shard", "0/2"], "without --shard"),
    ],
)
def test_what_is_refused(command, files, tmp_path, more, message):
    result = run(command, files, tmp_path / "out", *more)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["mjbench", "pair-accuracy"])
def test_a_folder_that_is_held_is_refused_before_an_actor_begins(command, files, tmp_path, monkeypatch):
    made = ray_in_process()
    monkeypatch.setitem(sys.modules, "ray", made)
    with hold_folder(tmp_path / "out"):
        result = run(command, files, tmp_path / "out", "--ray-workers", "2")
    assert result.exit_code == 2 and "is in use by process" in result.stderr
    assert made.actors == []


SHARED = ("out", "shard", "ray_workers", "device", "reward", "batch_size")
"""Options of every benchmark; safety names its rewards by what they do."""


def test_the_same_options_everywhere():
    """Of one name each means one thing: of one type and, where they are named twice, with the same short name."""
    options = {}
    for command in COMMANDS:
        name = command.split()[0].replace("-", "_")
        made = with_options(getattr(import_module(f"fk_reward.cli.{name}"), name), ["--method", "fk"])
        options[name] = {one.name: str(one.annotation) for one in inspect.signature(made).parameters.values()}
    missing = {(name, one) for name, own in options.items() for one in SHARED if one not in own}
    assert missing == {("safety", "reward")}
    for one in ("shard", "ray_workers"):
        assert len({own[one] for own in options.values()}) == 1, one
