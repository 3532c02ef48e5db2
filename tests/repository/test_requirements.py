"""constraints.txt pins what setup.cfg asks for, for each supported Python, and names no file of one machine."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.layout import ROOT, setup_config

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


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


def test_torchvision_is_never_needed():
    assert "torchvision" not in (ROOT / "constraints.txt").read_text() + (ROOT / "setup.cfg").read_text()
