"""Imports that wait: names of packages, and whole modules."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

from fk_reward.lazy import attributes, defer_import, is_loaded

PACKAGE = {
    "slow/__init__.py": "import slow.part\nfrom slow.part import value\nRUNS.append('slow')\n",
    "slow/part.py": "from __main__ import RUNS\nimport slow\nslow.RUNS = RUNS\nRUNS.append('part')\nvalue = 3\n",
    "slow/late.py": "from slow import value\nRUNS = __import__('__main__').RUNS\nRUNS.append('late')\n",
    "user.py": "import slow\n\ndef ask():\n    return slow.value\n",
}
"""A package that imports itself in a circle while it is loaded, as torch does."""


def runs(tmp_path, code):
    """What was run, in order, in a process in which `slow` is deferred."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    start = "from fk_reward.lazy import defer_import\nimport sys\nRUNS = []\nsys.path.insert(0, '.')\n"
    text = f"{start}defer_import('slow')\n{code}\nprint(RUNS)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import slow; import slow; import user", "[]"),
        ("import user; user.ask(); user.ask()", "['part', 'slow']"),
        ("from slow import value", "['part', 'slow']"),
        ("import slow.part; slow.part.value", "['part', 'slow']"),
        ("from slow.part import value; import slow; slow.value", "['part', 'slow']"),
        ("import slow.late", "['part', 'slow', 'late']"),
        ("import slow; slow.part.__spec__.loader.get_code; slow.value", "['part', 'slow']"),
        ("import user\ntry: user.slow.nothing\nexcept AttributeError: RUNS.append('no')", "['part', 'slow', 'no']"),
    ],
)
def test_a_deferred_package_is_run_once_and_when_it_is_used(tmp_path, code, expected):
    assert runs(tmp_path, code) == expected


def test_a_package_that_fails_fails_where_it_is_used(tmp_path):
    (tmp_path / "broken.py").write_text("raise ValueError('no GPU driver')")
    code = "import sys; sys.path.insert(0, '.')\nfrom fk_reward.lazy import defer_import\ndefer_import('broken')\n"
    code += "import broken\ntry: broken.name\nexcept ValueError as error: print(error, 'broken' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "no GPU driver False"


def test_what_is_there_or_missing_is_left_alone():
    before = sys.modules["json"] if "json" in sys.modules else __import__("json")
    defer_import("json")
    defer_import("no_such_module_anywhere")
    assert sys.modules["json"] is before and is_loaded("json") and not is_loaded("no_such_module_anywhere")


def copy_of(package: str) -> types.ModuleType:
    """A package that may be given names; one of them left in the true package would be an export that nobody lists."""
    copy = types.ModuleType(package)
    vars(copy).update(vars(importlib.import_module(package)))
    return copy


def test_names_of_a_package_and_of_its_siblings(monkeypatch):
    monkeypatch.setitem(sys.modules, "fk_reward.pipelines", copy_of("fk_reward.pipelines"))
    get, names = attributes("fk_reward.pipelines", {"Solver": "schedulers", "steer": ".sampling.steering"})
    assert (get("Solver").__name__, get("steer").__name__) == ("Solver", "steer")
    assert "Solver" in names()
