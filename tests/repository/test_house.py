"""`scripts/house.py` counts what it says, on a made-up checkout."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from scripts import house
from scripts.house import AT_IMPORT, DEFERRED, TYPES, Import
from tests.repository.made_up_tree import LONG, write_tree


def imports_of(root, text, name="pipelines/asked.py"):
    """The imports of one file with this text."""
    sources = house.read_sources(write_tree(root, {name: text}))
    asked = house.module_name(Path(name))
    return {(line.imported, line.kind) for line in house.read_imports(sources) if line.importer == asked}


def test_shipped_files_are_those_of_the_four_folders(tmp_path):
    sources = house.read_sources(write_tree(tmp_path))
    names = {source.path.as_posix(): source.module for source in sources}
    assert len(names) == 12
    assert names["rewards/base.py"] == "fk_reward.rewards.base"
    assert names["fk_reward/smc/__init__.py"] == "fk_reward.smc"
    assert {source.folder for source in sources} == {
        *("fk_reward", "fk_reward/smc", "fk_reward/search", "pipelines", "rewards", "training")
    }


def test_body_lines_begin_after_the_docstring():
    source = 'def f():\n    """Doc.\n\n    More.\n    """\n    x = 1\n\n    def g(): return 1\n    return (\n    x)\n'
    assert [house.body_lines(function) for function in house.functions(ast.parse(source))] == [5, 1]
    (only_a_docstring,) = house.functions(ast.parse('def f():\n    """Doc."""'))
    assert house.body_lines(only_a_docstring) == 0


def test_comments_for_tools_do_not_count():
    text = '#!/bin/python\n# why\nx = 1  # because\ny = 2  # noqa: S101\nz = "# no"\nv = 3  # type: ignore[x]\n'
    assert house.comment_lines(text) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import fk_reward.files", {("fk_reward.files", AT_IMPORT)}),
        ("from fk_reward.files import NUMBER_0", {("fk_reward.files", AT_IMPORT)}),
        ("from fk_reward.smc import weights", {("fk_reward.smc.weights", AT_IMPORT)}),
        ("from fk_reward.smc import ess", {("fk_reward.smc", AT_IMPORT)}),
        (
            "from fk_reward.smc import ess, weights",
            {("fk_reward.smc", AT_IMPORT), ("fk_reward.smc.weights", AT_IMPORT)},
        ),
        ("from .run import call", {("fk_reward.pipelines.run", AT_IMPORT)}),
        ("from ..files import NUMBER_0", {("fk_reward.files", AT_IMPORT)}),
        ("from . import run", {("fk_reward.pipelines.run", AT_IMPORT)}),
        ("try:\n    import fk_reward.files\nfinally: pass", {("fk_reward.files", AT_IMPORT)}),
        ("class A:\n    import fk_reward.files", {("fk_reward.files", AT_IMPORT)}),
        ("def f():\n    if x:\n        import fk_reward.files", {("fk_reward.files", DEFERRED)}),
        ("if TYPE_CHECKING:\n    import fk_reward.files", {("fk_reward.files", TYPES)}),
        ("if typing.TYPE_CHECKING: pass\nelse: import fk_reward.files", {("fk_reward.files", AT_IMPORT)}),
        ("import torch\nfrom torch import fk_reward\nimport fk_reward.pipelines.asked", set()),
    ],
)
def test_imports_are_found(tmp_path, text, expected):
    assert imports_of(tmp_path, text) == expected


def test_relative_imports_of_a_package(tmp_path):
    assert imports_of(tmp_path, "from .run import call", "pipelines/__init__.py") == {
        ("fk_reward.pipelines.run", AT_IMPORT)
    }


def test_files_with_one_importer(tmp_path):
    changes = {
        "pipelines/short.py": "",
        "pipelines/long.py": LONG,
        "pipelines/public.py": "",
        "pipelines/twice.py": "",
        "pipelines/unused.py": "",
        "pipelines/__init__.py": "from fk_reward.pipelines import public, twice",
        "pipelines/user.py": LONG + "from fk_reward.pipelines import long, twice\ndef f(): from . import short",
    }
    sources = house.read_sources(write_tree(tmp_path, changes))
    imports = house.read_imports(sources)
    single = house.single_importers(sources, imports)
    assert {path for path in single if path in changes} == {
        f"pipelines/{name}.py" for name in ("short", "long", "public")
    }
    assert house.fragments(sources, imports) == {"pipelines/short.py": "fk_reward.pipelines.user"}


def test_circles_are_groups_that_reach_one_another():
    imports = [Import(*pair) for pair in ("ab", "bc", "ca", "cd", "de", "fg")] + [Import("e", "d", TYPES)]
    assert house.circles(imports) == [("a", "b", "c")]
    assert house.circles(imports, kinds=(AT_IMPORT, TYPES)) == [("a", "b", "c"), ("d", "e")]
    assert house.circles(imports[:2]) == []


@pytest.mark.parametrize(
    ("importer", "imported", "up"),
    [
        ("cli", "smc", False),
        ("planning", "pipelines", False),
        ("pipelines", "planning", True),
        ("benchmarks", "cli", True),
        ("rewards", "training", False),
        ("training", "sampling", True),
        ("base", "rewards", True),
        ("base", "base", False),
        ("sampling", "rewards", False),
        ("shapes", "base", False),
    ],
)
def test_what_runs_up(importer, imported, up):
    assert house.runs_up(importer, imported) == up


def test_only_imports_that_run_up_are_found(tmp_path):
    changes = {
        "fk_reward/__init__.py": "from fk_reward.pipelines import run",
        "fk_reward/smc/__init__.py": "def f(): from fk_reward.search import beam",
        "rewards/base.py": "if TYPE_CHECKING:\n    from fk_reward.pipelines import run",
        "fk_reward/files.py": "from fk_reward.smc import weights",
    }
    sources = house.read_sources(write_tree(tmp_path, changes))
    imports = house.read_imports(sources)
    found = house.imports_that_run_up(sources, imports, kinds=(AT_IMPORT, DEFERRED))
    assert [(line.importer, line.imported) for line in found] == [
        ("fk_reward.files", "fk_reward.smc.weights"),
        ("fk_reward.smc", "fk_reward.search.beam"),
    ]
    (for_types,) = house.imports_that_run_up(sources, imports, kinds=(TYPES,))
    assert for_types.importer == "fk_reward.rewards.base"


def test_percentiles_are_values_of_the_list():
    assert [house.percentile([5, 1, 4, 2, 3, 9, 8, 7, 6, 10], percent) for percent in (50, 90, 100)] == [5, 9, 10]


class TestTheWayOfAText:
    """Files of a made-up package that get a text in different ways."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        (tmp_path / "way").mkdir()
        texts = {
            "gets": "def f(words): return [word for word in words]",
            "makes": "def f(words):\n    text = 'a photo of ' + words[0]\n    return len(text)",
            "yields": "def f(words):\n    for word in words:\n        yield word",
            "counts": "def f(number): return number + 1",
            "idle": "def f(): return 0",
        }
        for name, text in texts.items():
            (tmp_path / "way" / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        yield tmp_path
        for name in [name for name in sys.modules if name.split(".")[0] == "way"]:
            del sys.modules[name]

    def test_is_followed(self, package):
        from way import counts, gets, idle, makes, yields  # noqa: F401, PLC0415

        def action():
            gets.f(["a star"]), makes.f(("a star",)), list(yields.f({"a star": 1})), counts.f(1)

        found = house.watch(action, text="a star", root=package)
        assert found["Files that a prompt passes"] == ["way/gets.py", "way/makes.py", "way/yields.py"]
        assert found["Files that a call runs"] == ["way/counts.py", *found["Files that a prompt passes"]]

    def test_depends_on_the_text(self, package):
        from way import gets  # noqa: PLC0415

        assert (
            house.watch(lambda: gets.f(["a circle"]), text="a star", root=package)["Files that a prompt passes"] == []
        )
        assert sys.getprofile() is None


def test_the_report_has_a_column_for_each_checkout(tmp_path):
    old, new = write_tree(tmp_path / "old"), write_tree(tmp_path / "new", {"pipelines/more.py": "x = 1  # why\n"})
    houses = {root.name: house.measure(root, with_prompt=False) for root in (old, new)}
    lines = house.report(houses, with_lists=True).splitlines()
    assert "| Measure | old | new |" in lines
    assert "| Shipped files | 12 | 13 |" in lines
    assert "| Comment lines | 0 | 1 |" in lines
    assert "| pipelines | 2 files, 122 lines | 3 files, 123 lines |" in lines


@pytest.mark.slow
def test_the_prompt_passes_the_pipeline_and_the_reward():
    found = house.files_of_a_call(Path(house.__file__).parents[1])
    passed = found["Files that a prompt passes"]
    assert {path.split("/")[0] for path in passed} >= {"pipelines", "rewards"}
    assert set(passed) < set(found["Files that a call runs"])
