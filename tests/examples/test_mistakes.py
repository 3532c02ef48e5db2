"""Wrong folders, names and numbers given to the scripts of examples/benchmarks: one message, and no work done."""

from __future__ import annotations

import errno
import importlib
import os

import pytest

from fk_reward.output_folder import hold_folder
from tests.examples.scripts import invoke

WRITERS = {
    "gaussian": ("--num-particles", 4),
    "mixture": ("--num-particles", 4),
    "overhead": (),
    "steering_speed": (),
    "shapes_cost": ("--num-prompts", 1),
    "reward_speed": (),
    "reward_costs": ("--reward", "clipscore"),
}
"""Every script that writes a folder of results, `--out`."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """A refusal comes before any model is loaded."""

    def loaded(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fk_reward.pipelines.FKSteeringPipeline.from_pretrained", loaded)
    monkeypatch.setenv("COLUMNS", "200")


def refused(script, *arguments):
    main = importlib.import_module(f"examples.benchmarks.{script}").main
    return " ".join(invoke(main, *arguments, code=2).split())


@pytest.mark.parametrize("script", WRITERS)
def test_a_file_in_place_of_the_folder(tmp_path, script):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(tmp_path / "file") in refused(script, *WRITERS[script], "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("script", WRITERS)
def test_a_folder_in_use(tmp_path, script):
    with hold_folder(tmp_path / "out"):
        message = refused(script, *WRITERS[script], "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'} is in use by process" in message


@pytest.mark.parametrize("script", WRITERS)
def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, script):
    def denied(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    message = refused(script, *WRITERS[script], "--out", tmp_path / "out")
    assert f"Read-only file system: '{tmp_path / 'out'}'" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("shapes_cost", "--report"), "holds no results"),
        (("shapes_cost", "--variant", "none"), "variant should be one of"),
        (("gaussian", "--num-particles", "0"), "positive whole numbers"),
        (("gaussian", "--num-particles", "4", "--reward-scale", "nan"), "reward_scale"),
        (("mixture", "--num-runs", "1"), "--num-runs should be at least 2"),
        (("mixture", "--potentials", "maximum"), "potential should be one of"),
        (("mixture", "--schedules", "0.2-0.8"), "0.2-0.8x4"),
        (("mixture", "--weights", "falling"), "reward_weight"),
        (("mixture", "--thresholds", "half"), "ess_threshold"),
        (("overhead", "--model", "/no/such/folder"), "/no/such/folder"),
        (("overhead", "--device", "tpu"), "--device should be one of"),
        (("reward_speed", "--device", "tpu"), "--device should be one of"),
        (("reward_costs", "--reward", "clipscor"), "clipscore"),
    ],
)
def test_a_wrong_name_or_number(tmp_path, monkeypatch, line, message):
    if "/no/such/folder" in line:
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refused(*line, "--out", tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == [], "what is refused leaves no folder"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, number):
    replace = os.replace

    def full(source, target):
        if os.fspath(target).endswith("gaussian.json"):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("examples.benchmarks.gaussian.run_benchmark", lambda *arguments, **options: [])
    message = refused("gaussian", "--num-particles", 2, "--num-runs", 2, "--out", tmp_path / "out")
    assert f"{os.strerror(number)}: '{tmp_path / 'out' / 'gaussian.json'}'" in message
    assert "start the same command again" in message
