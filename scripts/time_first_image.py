"""How long a newcomer waits for the first steered image, from a clone and from the wheel.

    python scripts/time_first_image.py

Clones this checkout and follows README in a new folder, in an environment with nothing but HOME and PATH, without pip's
cache; then once more from the wheel alone. Prints a table of commands and seconds, and how busy the machine was.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = '"torch>=2.6" --index-url https://download.pytorch.org/whl/cpu'
PROMPT = "a photo of a red circle and a blue square"
ALONE = {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1", "HF_HUB_OFFLINE": "1"}
"""No cache, no news, and no hub: what is drawn is drawn offline."""


@dataclass(frozen=True)
class Step:
    """A command that was run.

    Attributes:
        command: as it is typed.
        seconds: on the clock, with downloads and with waiting for a core.
        cpu_seconds: of computing, which a busy machine does not stretch; more than seconds where several cores work.
    """

    command: str
    seconds: float
    cpu_seconds: float


def from_a_clone(torch: str, *, source: str = str(ROOT), python: str = sys.executable) -> list[str]:
    """What README says to do with a checkout."""
    return [f"git clone -q {shlex.quote(source)} .", *_install(torch, ".", python), *_draw()]


def from_the_wheel(torch: str, wheel: str, *, python: str = sys.executable) -> list[str]:
    """What somebody does who has the package and no checkout."""
    return [*_install(torch, wheel, python), *_draw()]


def _install(torch: str, package: str, python: str) -> list[str]:
    pip = ".venv/bin/pip install"
    return [f"{python} -m venv .venv", f"{pip} {torch}", f"{pip} {shlex.quote(package)}"]


def _draw() -> list[str]:
    return [f'.venv/bin/fk-reward generate "{PROMPT}" --out first']


def timed(commands: Sequence[str], folder: Path) -> Iterator[Step]:
    """Run commands one after the other.

    Args:
        commands: as they are typed.
        folder: in which.

    Raises:
        RuntimeError: a command failed; with what it said.
    """
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ} | ALONE
    for command in commands:
        start, used = time.perf_counter(), _computed()
        done = subprocess.run(  # noqa: S603 (the commands are those above)
            shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        step = Step(command, time.perf_counter() - start, _computed() - used)
        sys.stderr.write(f"{step.seconds:7.1f} s, {step.cpu_seconds:6.1f} s of computing: {command}\n")
        yield step


def _computed() -> float:
    """Seconds of computing of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def table(title: str, steps: Sequence[Step]) -> str:
    """A path as rows of Markdown, with its sum."""
    rows = [(f"`{step.command}`", step.seconds, step.cpu_seconds) for step in steps]
    rows.append(("together", sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)))
    lines = [f"| {name} | {seconds:.1f} | {computed:.1f} |" for name, seconds, computed in rows]
    return "\n".join([f"| {title} | seconds | of computing |", "| --- | --- | --- |", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=TORCH, help="what pip is told to install PyTorch with")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environments")
    options = parser.parse_args(arguments)
    load, parent = os.getloadavg()[0], Path(tempfile.mkdtemp(prefix="first-image-"))
    checkout, alone = parent / "checkout", parent / "alone"
    for folder in (checkout, alone):
        folder.mkdir()
    try:
        steps = list(timed(from_a_clone(options.torch, python=options.python), checkout))
        sys.stdout.write(table("from a clone", steps) + "\n\n")
        built = f"{options.python} -m pip wheel --no-deps --wheel-dir {alone} {checkout}"
        list(timed([built], parent))
        wheel = next(alone.glob("*.whl")).name
        steps = list(timed(from_the_wheel(options.torch, wheel, python=options.python), alone))
        sys.stdout.write(table("from the wheel", steps) + "\n\n")
    finally:
        shutil.rmtree(parent)
    sys.stdout.write(f"{os.cpu_count()} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after\n")


if __name__ == "__main__":
    main()
