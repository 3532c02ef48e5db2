"""Each script of examples/ has a `main` whose defaults are small, and runs."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from types import ModuleType

import pytest

from tests.repository.layout import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def _load(path, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look up what annotations name
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs_with_its_defaults(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = _load(path, monkeypatch).main
    required = [name for name, value in inspect.signature(main).parameters.items() if value.default is value.empty]
    assert required == []
    main()


def test_there_are_examples():
    assert SCRIPTS
