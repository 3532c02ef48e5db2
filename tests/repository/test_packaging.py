"""The wheel: one top-level name, the four folders inside it, the weights, and nothing else."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from scripts.check_release import LARGEST
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, packages, tracked_files

IMPORT_ALL = "import fk_reward, {names}; print(fk_reward.__file__)"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of exactly the tracked files."""
    source = tmp_path_factory.mktemp("source")
    for path in tracked_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path)
    return source


@pytest.fixture(scope="module")
def archive(source, tmp_path_factory) -> Path:
    """The source archive of them."""
    out = tmp_path_factory.mktemp("archive")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory) -> Path:
    """The wheel built from the archive without a network: what is in neither manifest nor packages is missing here."""
    out = tmp_path_factory.mktemp("wheel")
    safe = {"filter": "data"} if "filter" in inspect.signature(shutil.unpack_archive).parameters else {}  # since 3.11.4
    shutil.unpack_archive(archive, out, **safe)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    (unpacked,) = out.glob("fk_reward-*/")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(unpacked)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def members(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def foreign_members(members: set[str]) -> list[str]:
    """Files outside the package and its metadata, and files that no user needs."""
    unwanted = {"tests", "examples"}
    return sorted(
        name
        for name in members
        if not name.startswith(("fk_reward/", "fk_reward-")) or unwanted & set(Path(name).parts)
    )


def test_the_only_top_level_name_is_fk_reward(members):
    assert foreign_members(members) == []


@pytest.mark.parametrize("stray", ["rewards/base.py", "tests/conftest.py", "fk_reward/examples/demo.py"])
def test_a_stray_file_would_be_noticed(members, stray):
    assert foreign_members(members | {stray}) == [stray]


def test_every_tracked_module_is_inside(members):
    modules = [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] in LIBRARY_FOLDERS]
    expected = {path.as_posix() if path.parts[0] == "fk_reward" else f"fk_reward/{path.as_posix()}" for path in modules}
    assert {name for name in members if name.endswith(".py")} == expected


def test_types_and_weights_are_inside(members):
    assets = {path.as_posix() for path in tracked_files() if path.parts[:2] == ("fk_reward", "assets")}
    assert "fk_reward/py.typed" in members
    assert assets <= members
    for model in ("shapes-sd", "shapes-clip"):
        assert any(name.startswith(f"fk_reward/assets/{model}/") and name.endswith(".safetensors") for name in members)


def test_setup_lists_every_package():
    folders = {path.parent for path in tracked_files() if path.name == "__init__.py"}
    library = {folder for folder in folders if folder.parts[0] in LIBRARY_FOLDERS}
    names = {".".join(folder.parts).removeprefix("fk_reward.") for folder in library} - {"fk_reward"}
    assert set(packages()) == {"fk_reward", *(f"fk_reward.{name}" for name in names)}


def test_archive_and_wheel_are_small(archive, wheel):
    assert archive.stat().st_size < LARGEST
    assert wheel.stat().st_size < LARGEST


@pytest.fixture(scope="module")
def empty_environment(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel; what it depends on is that of this interpreter.

    A line in a .pth file adds a folder without reading the .pth files in it, so that an editable installation of this
    checkout is not seen there.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _alone() -> dict[str, str]:
    """The variables of this process without those that would let another checkout in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_installed_wheel_imports_by_itself(empty_environment, tmp_path):
    imported = [str(empty_environment), "-I", "-c", IMPORT_ALL.format(names=", ".join(packages()))]
    result = subprocess.run(imported, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(result.stdout.strip()).is_relative_to(empty_environment.parents[1])


@pytest.mark.long
def test_the_installed_command_draws(empty_environment, tmp_path):
    """From an empty folder: an image that is steered, on the embedded models."""
    command = empty_environment.with_name("fk-reward")
    drawn = [str(command), "generate", "a photo of a circle", "--steps", "3", "--out", "first"]
    result = subprocess.run(drawn, cwd=tmp_path, env=_alone(), capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    assert list((tmp_path / "first").rglob("*.png"))


SCRIPT = """
from pathlib import Path

import torch

from fk_reward import FKSteeringConfig, FKSteeringOutput, FKSteeringPipeline, Reward, RewardCard, load_reward, steer
from fk_reward.pipelines import LoopResult, SteeredLoop
from fk_reward.search import BestOfN, Pruning, SearchConfig


class Redness(Reward):
    card = RewardCard(name="redness", summary="red", spread=0.05)

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images[:, 0].mean(dim=(1, 2))


def draw(prompt: str, search: SearchConfig, folder: Path) -> torch.Tensor:
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=0.5 * Redness() + load_reward("shapes-verifier"))
    out = pipe(prompt, search=search, num_inference_steps=4)
    assert isinstance(out, FKSteeringOutput)
    out.images[0].save(folder / "best.png")
    out.trace.plot(folder / "lineage.png")
    ancestors: list[torch.Tensor | None] = [step.ancestors for step in out.trace.steps]
    print(ancestors, out.trace.cost)
    return out.rewards


def loop(samples: torch.Tensor) -> LoopResult:
    return SteeredLoop(BestOfN(), Redness(), ["a"], torch.sigmoid, num_particles=len(samples)).finish(samples)


draw("a", Pruning(), Path())
draw("a", FKSteeringConfig(num_particles=8), Path())
print(steer)
"""
"""What a user writes; mypy sees the types of the installed package, or finds every word of it untyped."""


WRONG = SCRIPT.replace("num_particles=8", 'num_particles="8"').replace("-> LoopResult", "-> int")

FOLLOWED = """
[mypy]
[mypy-torch.*]
follow_imports = silent
[mypy-accelerate.*,diffusers.*,huggingface_hub.*,matplotlib.*,peft.*,transformers.*]
follow_imports = skip
[mypy-torch._dynamo.*,torch._functorch.*,torch._higher_order_ops.*,torch._inductor.*,torch.ao.*]
follow_imports = skip
[mypy-torch.distributed.*,torch.export.*,torch.fx.*,torch.onnx.*,torch.utils.data.*,sympy.*]
follow_imports = skip
"""
"""The types of tensors and modules are followed; what the script and our signatures do not name is not read, as in
`make types`: millions of lines, and most of the time that this took."""


@pytest.mark.long
def test_a_users_script_is_typed(empty_environment, tmp_path):
    """`mypy --strict` on the script finds nothing, and finds two mistakes in it when they are made."""
    for name, text in (("user.py", SCRIPT), ("wrong.py", WRONG), ("mypy.ini", FOLLOWED)):
        (tmp_path / name).write_text(text)
    options = ["--strict", "--python-executable", str(empty_environment), "--cache-dir", os.devnull]
    command = [sys.executable, "-m", "mypy", *options, "user.py", "wrong.py"]
    result = subprocess.run(command, cwd=tmp_path, env=_alone(), capture_output=True, text=True, timeout=1800)
    errors = [line for line in result.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[0] for line in errors] == ["wrong.py"] * 2, result.stdout + result.stderr
    assert "num_particles" in errors[1] and "LoopResult" in errors[0], result.stdout
