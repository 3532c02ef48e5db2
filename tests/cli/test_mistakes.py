"""What a person gets wrong is told in one message, with exit code 2 and no traceback, by every command."""

from __future__ import annotations

import errno
import os

import pytest

from fk_reward.cli import errors
from fk_reward.cli.benchmark import BENCHMARKS
from fk_reward.output_folder import hold_folder
from tests.command_line import run_command_line

MJBENCH = ("mjbench", "--suite", "shapes", "--reward", "brightness", "--num-pairs", 7)
WRITERS = {
    "generate": ("generate", "a cat"),
    "demo": ("demo", "--num-prompts", 1),
    "mjbench": MJBENCH,
    "geneval": ("geneval", "--suite", "shapes", "--num-prompts", 1),
    "gaussian": ("script", "gaussian", "--num-particles", 4),
    "overhead": ("script", "overhead"),
    "steering-speed": ("script", "steering-speed"),
    "shapes-cost": ("script", "shapes-cost", "--num-prompts", 1),
    "reward-speed": ("script", "reward-speed"),
    "rewards": ("script", "reward-costs", "--reward", "clipscore"),
    "preferences": ("benchmark", "preferences", "--data", "nothing.json", "--reward", "brightness"),
}
"""Every command that writes a folder of results, `--out`; `train` names its folder otherwise, and has a test file."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """A refusal comes before any model is loaded."""

    def loaded(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fk_reward.pipelines.FKSteeringPipeline.from_pretrained", loaded)


def test_every_benchmark_is_among_them():
    assert set(BENCHMARKS) <= set(WRITERS)


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_in_place_of_the_folder(refused, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(tmp_path / "file") in refused(*WRITERS[command], "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_in_use(refused, tmp_path, command):
    with hold_folder(tmp_path / "out"):
        assert f"{tmp_path / 'out'} is in use by process" in refused(*WRITERS[command], "--out", tmp_path / "out")


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_cannot_be_written_to(refused, tmp_path, monkeypatch, command):
    def denied(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    assert f"Read-only file system: '{tmp_path / 'out'}'" in refused(*WRITERS[command], "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("geneval", "--suite", "shapes", "--reward", "brightnes"), "brightness"),
        (("geneval", "--suite", "shapes", "--model", "/no/such/folder"), "/no/such/folder"),
        (("geneval", "--suite", "shapes", "--device", "tpu"), "--device should be one of"),
        (("geneval", "--suite", "shapes", "--potential", "min"), "potential should be one of"),
        (("geneval", "--suite", "shapes", "--shard", "2/2"), "shard should be i/n"),
        (("geneval", "--suite", "shapes", "--num-prompts", "none"), "--num-prompts"),
        (("geneval", "--suite", "shapes", "--stage", "report"), "There is no folder"),
        (("script", "shapes-cost", "--report"), "holds no results"),
        (("script", "shapes-cost", "--variant", "none"), "variant should be one of"),
        (("script", "gaussian", "--num-particles", "0"), "positive whole numbers"),
        (("script", "gaussian", "--num-particles", "4", "--reward-scale", "nan"), "reward_scale"),
        (("script", "overhead", "--model", "/no/such/folder"), "/no/such/folder"),
        (("script", "overhead", "--device", "tpu"), "--device should be one of"),
        (("script", "reward-speed", "--device", "tpu"), "--device should be one of"),
        (("script", "reward-costs", "--reward", "clipscor"), "clipscore"),
        (("benchmark", "preferences", "--data", "nothing.json", "--reward", "brightness"), "nothing.json"),
        (("benchmark", "speed"), "No such command"),
        (("mjbench", "--report"), "holds no results"),
        (("geneval", "--stage", "judge", "--suite", "shapes"), "There is no folder"),
        (("geneval", "--preset", "none"), "there are fk-paper"),
    ],
)
def test_a_wrong_name_or_number(refused, tmp_path, monkeypatch, request, line, message):
    if "/no/such/folder" in line:
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refused(*line, *(("--out", tmp_path / "new" / "out") if line[1] != "speed" else ()))
    assert list(tmp_path.iterdir()) == [], "what is refused leaves no folder"


@pytest.mark.parametrize(
    "line", [("score", "a.png", "--prompt", "x"), ("convert", "no", "out", "--backbone", "phi3_v", "--dimension", "x")]
)
def test_missing_files(refused, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    assert line[1] in refused(*line)


def test_a_missing_package_is_named(refused, monkeypatch):
    def absent():
        raise ImportError("A judge behind an endpoint needs the openai package: pip install 'fk-reward[judge]'.")

    monkeypatch.setattr("fk_reward.cli.rewards.reward_page", lambda cards: absent())
    assert "pip install 'fk-reward[judge]'" in refused("rewards", "--markdown")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file(refused, tmp_path, monkeypatch, number):
    replace = os.replace

    def full(source, target):
        if os.fspath(target).endswith("mjbench.json"):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = refused(*MJBENCH, "--out", tmp_path / "out")
    assert f"{os.strerror(number)}: '{tmp_path / 'out' / 'mjbench.json'}'" in message
    assert "start the same command again" in message


def test_a_traceback_on_request(monkeypatch):
    monkeypatch.setenv(errors.SHOW_TRACEBACK, "1")
    result = run_command_line("score", "nothing.png", "--prompt", "x")
    assert isinstance(result.exception, ValueError | OSError)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("fk_reward.cli.rewards._all_cards", lambda: [][0])
    assert isinstance(run_command_line("rewards").exception, IndexError)


def test_an_error_without_words_is_named(capsys):
    with pytest.raises(SystemExit) as left, errors.clean_errors():
        raise ValueError
    assert left.value.code == 2
    assert "Error: ValueError" in capsys.readouterr().err
