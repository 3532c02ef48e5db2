"""The application as a whole: version, help, lazy imports, benchmarks."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from fk_reward import __version__
from fk_reward.cli import benchmark
from fk_reward.cli.app import build_app


def test_version(run):
    assert run("--version").stdout == f"fk-reward {__version__}\n"


def test_help_waits_for_no_heavy_import():
    code = (
        "import sys; from fk_reward.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_completion_knows_the_options():
    script = build_app(("--install-completion",)).generate_completion(shell="bash")  # noqa: S604 (no subprocess)
    assert "--num-particles" in script and "hard-negatives" in script


COMMANDS = (
    "generate",
    "score",
    "rewards",
    "convert",
    "hard-negatives",
    "train",
    "trainable-share",
    "demo",
    "geneval",
    "mjbench",
    "benchmark",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    assert command in run("--help").stdout
    assert run(command, "--help").exit_code == 0


def test_an_unknown_command(refused):
    assert 'Did you mean "generate"' in refused("genrate")


def test_a_benchmark_is_imported_only_when_named(run, refused, monkeypatch):
    seen = []

    def main(num_runs: int = 3) -> None:
        """Count runs."""
        seen.append(num_runs)

    module = ModuleType("a_benchmark")
    module.main = main
    monkeypatch.setitem(sys.modules, "a_benchmark", module)
    monkeypatch.setattr(benchmark, "BENCHMARKS", {"counting": "a_benchmark", "absent": "no_such_module"})
    assert run("benchmark", "counting", "--num-runs", 5).exit_code == 0
    assert seen == [5]
    assert "Count runs" in run("benchmark", "counting", "--help").stdout
    assert "No such command" in refused("benchmark", "speed")


@pytest.mark.parametrize("name", list(benchmark.BENCHMARKS))
def test_each_benchmark_has_help(run, name):
    result = run("benchmark", name, "--help")
    assert result.exit_code == 0, result.output
    assert "--out" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a star", "--out"),
        ("demo", "--out"),
        ("geneval", "--out"),
        ("mjbench", "--out"),
        ("convert", "somewhere"),
        ("hard-negatives", "pairs.json"),
        *(("benchmark", name, "--out") for name in benchmark.BENCHMARKS),
    ],
)
def test_an_empty_name_is_no_folder(refused, command):
    """Of an unset variable of a shell: it would be the current folder."""
    assert "the name is empty" in refused(*command, "")
