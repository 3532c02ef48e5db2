"""The application as a whole: help, lazy imports, default reward, mistakes of the user, and text shown as typed."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from fk_reward import SteeringTrace, __version__
from fk_reward.cli import run_script
from fk_reward.cli.app import COMMANDS, GROUPS, SHOW_TRACEBACK, build_app, clean_errors
from fk_reward.cli.demo import demo
from fk_reward.cli.generate import Request
from fk_reward.cli.options import OutOption, with_options
from fk_reward.cli.score import score
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder
from fk_reward.rewards import available_rewards
from fk_reward.text import visible
from tests.command_line import run_command_line
from tests.repository.layout import ROOT


def test_version(run):
    assert run("--version").stdout == f"fk-reward {__version__}\n"


def test_completion_knows_the_options():
    script = build_app(("--install-completion",)).generate_completion(shell="bash")  # noqa: S604 (no subprocess)
    assert "--num-particles" in script and "hard-negatives" in script


NAMES = (
    "generate",
    "score",
    "rewards",
    "compare",
    "convert",
    "hard-negatives",
    "train",
    "trainable-share",
    "demo",
    "doctor",
    "geneval",
    "benchmark",
    "benchmark rewards",
    "scaling",
    "safety",
    "mjbench",
    "noise-accuracy",
    "plan",
    "preferences",
    "pair-accuracy",
    "prices",
    "record",
    "replay",
    "skills prompts",
    "skills draw",
    "skills train",
    "skills merge",
    "cache evolve",
    "cache apply",
    "cache show",
    "ui",
)


def test_these_are_all_commands():
    assert set(NAMES) == set(COMMANDS)


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_help(run, command):
    *group, last = command.split()
    assert last in run(*group, "--help").stdout
    assert run(*command.split(), "--help").exit_code == 0


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_commands_and_says_what_they_are_about(run, group):
    assert any(name.startswith(f"{group} ") for name in COMMANDS)
    assert GROUPS[group].split()[0] in run("--help").stdout


def test_an_unknown_command(refused):
    assert 'Did you mean "generate"' in refused("genrate")


def test_a_script_is_run_as_commands_are(capsys):
    seen = []

    def script(*, num_runs: int = 3, out: OutOption = Path("results")) -> None:
        """Count runs.

        Args:
            num_runs: How many.
            out: Folder of the results.
        """
        seen.append((num_runs, out))
        if num_runs < 1:
            raise ValueError("no runs")

    run_script(script, ["--num-runs", "5"])
    run_script(script, ["--out", "here"])
    assert seen == [(5, Path("results")), (3, Path("here"))]
    run_script(script, ["--help"])
    told = capsys.readouterr().out
    assert "Count runs" in told and "How many." in told and "--num-runs" in told
    for tokens, message in ((["--num-runs", "0"], "no runs"), (["--runs", "2"], "--runs"), (["--out", ""], "is empty")):
        with pytest.raises(SystemExit) as left:
            run_script(script, tokens)
        assert left.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["gaussian", "overhead", "steering_speed", "shapes_cost", "reward_speed", "reward_costs"]
)
def test_each_script_explains_its_options(run, name):
    result = run("script", name, "--help")
    assert result.exit_code == 0, result.output
    assert "--out" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a star", "--out"),
        ("demo", "--out"),
        ("geneval", "--out"),
        ("scaling", "--out"),
        ("mjbench", "--out"),
        ("convert", "somewhere"),
        ("hard-negatives", "pairs.json"),
        ("preferences", "--data", "pairs.json", "--out"),
        ("script", "gaussian", "--out"),
    ],
)
def test_an_empty_name_is_no_folder(refused, command):
    """Of an unset variable of a shell: it would be the current folder."""
    assert "the name is empty" in refused(*command, "")


def first_reward(text):
    """The reward of the first snippet that loads the embedded model."""
    return re.search(r'from_pretrained\(\s*"shapes-sd", reward="([^"]+)"', text)[1]


def test_the_default_reward_is_a_known_one():
    assert DEFAULT_EMBEDDED_REWARD in available_rewards()


@pytest.mark.parametrize("command", [demo, Request, score])
def test_one_constant_says_which_reward_steers_the_embedded_model(command):
    assert inspect.signature(command).parameters["reward"].default == DEFAULT_EMBEDDED_REWARD


@pytest.mark.parametrize("page", ["README.md", "docs/trace.md", "pipelines/fk_steering_pipeline.py"])
def test_first_snippets_show_the_default_reward(page):
    assert first_reward((ROOT / page).read_text(encoding="utf-8")) == DEFAULT_EMBEDDED_REWARD


def test_another_reward_in_a_snippet_is_noticed():
    snippet = 'FKSteeringPipeline.from_pretrained(\n    "shapes-sd", reward="other", solver="unipc-20"\n)'
    assert first_reward(snippet) == "other" != DEFAULT_EMBEDDED_REWARD


MJBENCH = ("mjbench", "--suite", "shapes", "--reward", "brightness", "--num-pairs", 7)
WRITERS = {
    "generate": ("generate", "a cat"),
    "demo": ("demo", "--num-prompts", 1),
    "mjbench": MJBENCH,
    "geneval": ("geneval", "--suite", "shapes", "--num-prompts", 1),
    "benchmark": ("benchmark", "--suite", "shapes-geneval2", "--num-prompts", 1),
    "scaling": ("scaling", "--suite", "shapes", "--num-prompts", 1, "--budgets", 200),
    "safety": ("safety", "--suite", "shapes-safety", "--num-prompts", 1),
    "pair-accuracy": ("pair-accuracy", "--data", "shapes", "--reward", "brightness"),
    "preferences": ("preferences", "--data", "nothing.json", "--reward", "brightness"),
    "noise-accuracy": ("noise-accuracy", "nothing"),
    "record": ("record", "a cat"),
    "skills draw": ("skills", "draw", "nothing.txt"),
    "skills train": ("skills", "train", "nothing"),
    "skills merge": ("skills", "merge", "nothing"),
    "cache evolve": ("cache", "evolve", "a cat"),
    "cache apply": ("cache", "apply", "schedule.json", "--prompt", "a cat"),
}
"""Every command that writes a folder of results, `--out`; scripts are in tests/examples, `train` has a test file."""


@pytest.fixture
def no_work(monkeypatch):
    """A refusal comes before any model is loaded."""

    def loaded(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fk_reward.pipelines.FKSteeringPipeline.from_pretrained", loaded)


def test_every_command_that_writes_a_folder_is_among_them():
    signatures = {name: inspect.signature(with_options(command, (name,))) for name, command in COMMANDS.items()}
    written = {name for name, signature in signatures.items() if "out" in signature.parameters}
    assert written - {"convert", "hard-negatives", "score", "skills prompts"} == set(WRITERS)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", WRITERS)
def test_a_file_in_place_of_the_folder(refused, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(tmp_path / "file") in refused(*WRITERS[command], "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_in_use(refused, tmp_path, command):
    with hold_folder(tmp_path / "out"):
        assert f"{tmp_path / 'out'} is in use by process" in refused(*WRITERS[command], "--out", tmp_path / "out")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_cannot_be_written_to(refused, tmp_path, monkeypatch, command):
    def denied(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    assert f"Read-only file system: '{tmp_path / 'out'}'" in refused(*WRITERS[command], "--out", tmp_path / "out")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("geneval", "--suite", "shapes", "--reward", "brightnes"), "brightness"),
        (("geneval", "--suite", "shapes", "--model", "/no/such/folder"), "/no/such/folder"),
        (("geneval", "--suite", "shapes", "--device", "tpu"), "--device should be one of"),
        (("geneval", "--suite", "shapes", "--potential", "min"), "potential should be one of"),
        (("geneval", "--suite", "shapes", "--shard", "2/2"), "shard should be i/n"),
        (("geneval", "--suite", "shapes", "--num-prompts", "some"), "--num-prompts"),
        (("geneval", "--suite", "shapes", "--stage", "report"), "There is no folder"),
        (("preferences", "--data", "nothing.json", "--reward", "brightness"), "nothing.json"),
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
    assert message in refused(*line, "--out", tmp_path / "new" / "out")
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
    monkeypatch.setenv(SHOW_TRACEBACK, "1")
    result = run_command_line("score", "nothing.png", "--prompt", "x")
    assert isinstance(result.exception, ValueError | OSError)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("fk_reward.cli.rewards._all_cards", lambda: [][0])
    assert isinstance(run_command_line("rewards").exception, IndexError)


def test_an_error_without_words_is_named(capsys):
    with pytest.raises(SystemExit) as left, clean_errors():
        raise ValueError
    assert left.value.code == 2
    assert "Error: ValueError" in capsys.readouterr().err


HOSTILE = (
    "a mug with a $_$ face",
    "a [cat|dog] in a hat",
    "a star [/red] circle",
    "[bold]a[/bold] :smile: 3.5",
    "\x1b[31mred\x1b[0m\ncat\r\a",
    "猫 😀 \u202eabc",
    "a <b>|*_`$ & \\frac{1}{2}",
)


@pytest.fixture
def options(model, tmp_path):
    return ["--model", model, "--reward", "brightness", "--steps", 2, "-k", 2, "--out", tmp_path / "out"]


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_generate_makes_all_prompts_and_shows_them(run, options, tmp_path, caplog):
    result = run("generate", *HOSTILE, *options)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for prompt in HOSTILE:
        assert visible(prompt) in result.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [entry["prompt"] for entry in record["results"]] == list(HOSTILE)
    assert len(list((tmp_path / "out").glob("lineage-*.png"))) == len(HOSTILE)
    assert "left out" not in caplog.text


def test_a_lineage_that_cannot_be_drawn_does_not_take_the_images_with_it(run, options, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr(SteeringTrace, "plot", fail)
    result = run("generate", "a", "b", *options)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["results"]) == 2
    assert "lineage-000.png failed, and was left out: ValueError: no font" in caplog.text


@pytest.mark.parametrize("prompt", HOSTILE)
def test_score_shows_the_prompt(run, image, prompt):
    result = run("score", image, "--prompt", prompt, "--reward", "brightness")
    assert result.exit_code == 0, result.output
    assert visible(prompt) in result.stdout and "\x1b" not in result.stdout
    written = json.loads(run("score", image, "--prompt", prompt, "--reward", "brightness", "--json").stdout)
    assert written["scores"][0]["prompt"] == prompt


def test_half_characters_are_refused_before_a_model_is_loaded(refused, options, image):
    assert "--prompt[0]: '\\ud83d' at place 2" in refused("score", image, "--prompt", "a \ud83d", "-r", "clipscore")
    options[1] = "no/such-model"
    assert "prompts[1]: '\\ud83d' at place 2" in refused("generate", "a star", "a \ud83d", *options)


def test_errors_show_what_was_typed(refused, image, tmp_path):
    assert "[/x] a" in refused("score", tmp_path / "[/x] a.png", "--prompt", "a", "--reward", "brightness")
    assert "'[red]'" in refused("score", image, "--prompt", "a", "--reward", "[red]")


def test_hard_negatives_show_captions(run, image, tmp_path):
    captions = [f"a red circle [/x] and a blue square {visible(text)}" for text in HOSTILE[:2]]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps([{"prompt": text, "path": image.name} for text in captions]))
    result = run("hard-negatives", path, tmp_path / "pairs.json")
    assert result.exit_code == 0, result.output
    assert "[/x]" in " ".join(result.output.split())


def test_the_demo_writes_its_figures_before_it_draws(run, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr(SteeringTrace, "plot", fail)
    monkeypatch.setattr("fk_reward.cli.demo_comparison.draw_demo", fail)
    result = run("demo", "--out", tmp_path / "demo", "--num-prompts", 1, "-k", 2, "--steps", 2, "--num-seeds", 1)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]
    assert caplog.text.count("left out") == 2
