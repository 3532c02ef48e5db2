"""constraints.txt pins what setup.cfg asks for, for each supported Python, and names no file of one machine."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files, setup_config

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def _lines(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _pins(python: str) -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for pin in _lines((ROOT / "constraints.txt").read_text()):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def test_every_line_is_one_exact_version():
    for pin in _lines((ROOT / "constraints.txt").read_text()):
        assert pin.url is None
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert "+" not in str(pin.specifier), f"{pin}: the tag of one build cannot be installed elsewhere"


@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_are_pinned_once_and_within_bounds(python):
    config, pins = setup_config(), _pins(python)
    wanted = _lines(config["options"]["install_requires"]) + _lines(config["options.extras_require"]["dev"])
    for requirement in wanted:
        found = pins.get(canonicalize_name(requirement.name), [])
        assert len(found) == 1, f"{requirement.name} has {len(found)} pins for Python {python}"
        version = next(iter(found[0].specifier)).version
        assert requirement.specifier.contains(version), f"{found[0]} is outside {requirement}"


def test_every_requirement_says_the_lowest_version():
    """Which CI installs and tests: `uv pip install --resolution lowest-direct`."""
    for requirement in _lines(setup_config()["options"]["install_requires"]):
        assert [specifier.operator for specifier in requirement.specifier] == [">="], requirement


def test_every_module_that_is_imported_at_once_is_required():
    """Imports that stand at the top of a file of the library, by the packages that hold them."""
    required = {canonicalize_name(line.name) for line in _lines(setup_config()["options"]["install_requires"])}
    holders = {name: {canonicalize_name(one) for one in found} for name, found in packages_distributions().items()}
    names = {name for path in python_files(*LIBRARY_FOLDERS) for name in _imported_at_once(ROOT / path)}
    foreign = names - {"fk_reward"} - set(sys.stdlib_module_names)
    missing = {name for name in foreign if not holders.get(name, {name}) & required}
    assert missing == set()


def _imported_at_once(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_classifiers_and_ci_name_the_same_pythons():
    """3.10 to 3.14."""
    classifiers = setup_config()["metadata"]["classifiers"].splitlines()
    named = {line.rpartition(" ")[2] for line in classifiers if "Python :: 3." in line}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert named == set(workflow["jobs"]["gate"]["strategy"]["matrix"]["python"]) == set(PYTHONS)


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_that_is_here_reads_all_files(python):
    """Grammar and the modules of the standard library; with what is installed for it, CI runs all tests."""
    interpreter = shutil.which(f"python{python}")
    works = interpreter and subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode == 0
    if not works:
        pytest.skip(f"Python {python} is not here")
    files = [str(ROOT / path) for path in python_files(*LIBRARY_FOLDERS)]
    result = subprocess.run(
        [interpreter, "-c", _READ], input="\n".join(files), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


_READ = """
import ast, importlib.util, sys
for path in sys.stdin.read().split("\\n"):
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read(), path)
    for node in tree.body:
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in {name.partition(".")[0] for name in names} & set(sys.stdlib_module_names):
            if importlib.util.find_spec(name) is None:
                sys.exit(f"{path}: no module {name}")
"""


def test_torchvision_is_never_needed():
    assert "torchvision" not in (ROOT / "constraints.txt").read_text() + (ROOT / "setup.cfg").read_text()
