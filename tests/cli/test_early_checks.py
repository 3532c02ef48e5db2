"""Values of options that are refused at once, and by the command as a process before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fk_reward.cli.early_checks import SOLVER_NAMES, check_lora, check_scheduler_name
from fk_reward.pipelines import SOLVERS
from fk_reward.search import SEARCHES

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "matplotlib", "scipy", "datasets")
_WATCH = """
import contextlib, io, json
from pathlib import Path
from fk_reward.cli import main
from fk_reward.lazy import is_loaded

told = []
for line in json.loads(Path("lines.json").read_text()):
    before, code, out, err = {name for name in HEAVY if is_loaded(name)}, 0, io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(line)
    except SystemExit as left:
        code = left.code or 0
    heavy = [name for name in HEAVY if is_loaded(name) and name not in before]
    told.append([code, heavy, out.getvalue(), err.getvalue()])
Path("told.json").write_text(json.dumps(told))
"""


def run_process(folder, *lines, flags=()):
    """Command lines in a process of their own: of each its code, heavy packages it imported, output and errors.

    And what the process said beside them on the error stream, when it began and when it ended.
    """
    (folder / "lines.json").write_text(json.dumps(lines))
    code = _WATCH.replace("HEAVY", repr(HEAVY))
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text()), done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the process said to every line of `HELPS` and `MISTAKES`, by the line."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "empty").mkdir()
    (folder / "prompts.txt").write_text("a star")
    (folder / "bad.csv").write_text("text\na star\n")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    lines = [*((*line, "--help") for line in HELPS), *(line for line, _ in MISTAKES)]
    answers = dict(zip(lines, run_process(folder, *lines)[0], strict=True))
    assert not (folder / "out").exists(), "what is refused leaves no folder"
    return answers


HELPS = [
    (),
    *(("generate", "--search", name) for name in SEARCHES),
    *(
        (name,)
        for name in ("generate", "score", "rewards", "plan", "demo", "train", "replay", "preferences", "prices", "ui")
    ),
]


@pytest.mark.parametrize("line", HELPS, ids=lambda line: " ".join(("fk-reward", *line)))
def test_help_imports_nothing_heavy(told, line):
    code, heavy, said, _ = told[(*line, "--help")]
    assert (code, heavy) == (0, []), "annotations alone: import names of torch under TYPE_CHECKING"
    assert "--" in said


GENERATE = ("generate", "a star", "--out", "out")
MISTAKES = [
    (("genrate",), "generate"),
    (("generate",), "Missing --out"),
    (("generate", "--out", "out"), "Give prompts in quotes, or --prompts FILE: got neither"),
    ((*GENERATE, "--frobnicate"), "--frobnicate"),
    ((*GENERATE, "-k", "0"), "num_particles should be at least 1"),
    ((*GENERATE, "--potential", "min"), "potential should be one of"),
    ((*GENERATE, "--search", "prunning"), "Did you mean 'pruning'"),
    ((*GENERATE, "--preset", "fk-papers"), "Did you mean 'fk-paper'"),
    ((*GENERATE, "--keep", "3"), "pruning"),
    ((*GENERATE, "--reward", "clip-score"), "Did you mean 'clipscore'"),
    ((*GENERATE, "--solver", "ddim100"), "Did you mean 'ddim-100'"),
    ((*GENERATE, "--scheduler", "ddim 50"), "--scheduler should be the name"),
    ((*GENERATE, "--scheduler", "DDIMScheduler", "--solver", "ddim-50"), "leave out --scheduler or --solver"),
    ((*GENERATE, "--model", "/no/such/folder"), "/no/such/folder: expected the folder of a pipeline"),
    ((*GENERATE, "--model", "stabilityai/stable-diffusion-2-1"), "sd2-community"),
    ((*GENERATE, "--device", "tpu"), "--device should be one of auto, cpu, cuda, cuda:N, mps"),
    ((*GENERATE, "--dtype", "int8"), "--dtype should be one of"),
    ((*GENERATE, "--offload", "modle"), "Did you mean 'model'"),
    ((*GENERATE, "--lora", "no.safetensors"), "--lora no.safetensors: no such file"),
    ((*GENERATE, "--height", "63"), "--height should be a multiple of 8"),
    ((*GENERATE, "--width", "0"), "--width should be at least 8"),
    ((*GENERATE, "--steps", "0"), "--num-inference-steps should be at least 1"),
    ((*GENERATE, "--decode-batch-size", "few"), 'decode_batch_size should be an int, "auto" or None'),
    (("generate", "--out", "out", "--prompts", "no.txt"), "--prompts no.txt: no such file"),
    ((*GENERATE, "--prompts", "prompts.txt"), "got both"),
    (("generate", "--out", "out", "--prompts", "bad.csv"), "no column 'prompt'"),
    (("score", "no.png", "--prompt", "a"), "no such image file: no.png"),
    (("score", "picture.png"), "picture.png has no prompt"),
    (("score", "empty"), "empty holds no images"),
    (("score", "picture.png", "-p", "a", "--reward", "beauty"), "Unknown reward 'beauty'"),
    (("score", "picture.png", "-p", "a", "--out", "scores.txt"), "the kind of file is told by its end"),
    (("plan", "--dtype", "int8"), "--dtype should be one of"),
    (("plan", "--reward", "clip-score"), "Did you mean 'clipscore'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[" ".join(line) for line, _ in MISTAKES])
def test_mistakes_are_told_before_anything_heavy_is_imported(told, line, message):
    code, heavy, _, errors = told[line]
    assert message in " ".join(errors.split())
    assert (code, heavy) == (2, [])


def test_solvers_are_known_by_name():
    assert set(SOLVER_NAMES) == set(SOLVERS)


@pytest.mark.parametrize("text", ["owner/name", "owner/name=0.5", "owner/name/folder/file.safetensors=-1", "."])
def test_loras_that_may_be_there(text):
    check_lora(text)


@pytest.mark.parametrize("text", ["", "=1", "owner/name=", "a/b/c", "/no/where", "x.safetensors"])
def test_loras_that_cannot_be(text):
    with pytest.raises(ValueError, match="--lora"):
        check_lora(text)


@pytest.mark.parametrize("text", ["", "5", "DDIMScheduler:", "DDIMScheduler:eta", "DDIMScheduler:=1", "a b"])
def test_schedulers_that_cannot_be(text):
    with pytest.raises(ValueError, match="--scheduler"):
        check_scheduler_name(text)


@pytest.mark.long
def test_what_works_imports_torch_and_says_nothing_foreign(tmp_path):
    """The saboteur of the watch, which would pass all of the above if it saw nothing; and what users read.

    Deprecations, hints and bars of other packages are not theirs: one line says what is loaded.
    """
    line = ("generate", "a photo of a circle", "--steps", "2", "--num-resamples", "0", "--out", str(tmp_path / "out"))
    ((code, heavy, _, errors),), beside = run_process(tmp_path, line, flags=("-W", "default"))
    assert (code, "torch" in heavy) == (0, True), errors
    assert Path(tmp_path / "out" / "000-00.png").exists()
    lines = [each for each in (errors + beside).splitlines() if each.strip()]
    assert lines[0] == "Loading shapes-sd with shapes-llava-reward-alignment ..."
    assert lines[1].startswith("1 of 1: a photo of a circle (") and len(lines) == 2, lines
