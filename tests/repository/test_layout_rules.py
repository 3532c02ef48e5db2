"""No circle of imports, no layer that imports a higher one, no file that is a piece of another; and proof of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.house import AT_IMPORT, Import, Source, read_sources
from tests.repository import not_yet
from tests.repository.code_rules import MAX_FILE_LINES
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files
from tests.repository.layout_rules import LONG_FILES, SHORT_FILES, Layout, added_modules
from tests.repository.made_up_tree import LONG, write_tree

STALE = "In order by now: run python -m tests.repository.not_yet, which takes it out of the list."


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout.of(ROOT)


def test_no_files_import_one_another_when_they_are_imported(layout):
    assert layout.circles == []


def test_no_files_import_one_another_later(layout):
    """An import within a function or for types only hides a circle: what both need belongs into a file below them."""
    assert layout.in_circles - {*not_yet.IN_CIRCLES} == set()
    assert {*not_yet.IN_CIRCLES} - layout.in_circles == set(), STALE


def test_no_layer_imports_a_higher_one(layout):
    """The layers are `LAYERS` of `scripts/house.py`. What a lower one needs is handed to it, or belongs below it."""
    assert layout.running_up - {*not_yet.RUNNING_UP} == set()
    assert {*not_yet.RUNNING_UP} - layout.running_up == set(), STALE


def test_a_short_file_with_one_importer_has_a_reason(layout):
    """It belongs into that file, unless it is what people add, or `SHORT_FILES` says why not."""
    assert layout.fragments - SHORT_FILES.keys() - {*not_yet.FRAGMENTS} == set()
    assert {*not_yet.FRAGMENTS} - layout.fragments == set(), STALE
    assert SHORT_FILES.keys() - layout.fragments == set(), "These need no reason."


def too_long(lengths, reasons):
    """Files that are longer than is usual without a reason, and those with a reason that they do not need."""
    return {path for path, length in lengths.items() if (length > MAX_FILE_LINES) != (path in reasons)}


def test_a_long_file_has_a_reason():
    paths = python_files(*LIBRARY_FOLDERS, "examples", "scripts", "tests")
    lengths = {path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths}
    assert too_long(lengths, LONG_FILES) == set()
    assert LONG_FILES.keys() <= lengths.keys()


def test_reasons_are_sentences():
    assert [path for path, reason in {**LONG_FILES, **SHORT_FILES}.items() if len(reason.split()) < 4] == []


def test_files_without_a_reason_and_reasons_without_a_file_are_noticed():
    assert too_long({"a.py": 501, "b.py": 500, "c.py": 800, "d.py": 10}, {"c.py": "why", "d.py": "why"}) == {
        *("a.py", "d.py")
    }


def test_a_house_in_order_passes(tmp_path):
    assert Layout.of(write_tree(tmp_path)) == Layout([], set(), set(), set())


IN_FUNCTION = "def f():\n    from fk_reward.search.beam import Beam\n"
FOR_TYPES = "if TYPE_CHECKING:\n    from fk_reward.search.beam import Beam\n"
CIRCLE = {"fk_reward.search.beam", "fk_reward.search.other"}


@pytest.mark.parametrize("text", ["from fk_reward.search.beam import Beam\n", IN_FUNCTION, FOR_TYPES])
def test_saboteur_circles_are_noticed(tmp_path, text):
    changes = {
        "fk_reward/search/beam.py": LONG + "from fk_reward.search.other import Other\n",
        "fk_reward/search/other.py": LONG + text,
    }
    layout = Layout.of(write_tree(tmp_path, changes))
    assert layout.in_circles == CIRCLE
    assert layout.circles == ([] if text in (IN_FUNCTION, FOR_TYPES) else [tuple(sorted(CIRCLE))])


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("fk_reward/smc/high.py", "from fk_reward.search.beam import Beam", {"fk_reward.smc.high -> search"}),
        ("fk_reward/search/high.py", "def f(): import fk_reward.pipelines.run", {"fk_reward.search.high -> pipelines"}),
        ("rewards/high.py", "from fk_reward.pipelines import run", {"fk_reward.rewards.high -> pipelines"}),
        ("training/high.py", "from fk_reward.smc import weights", {"fk_reward.training.high -> smc"}),
        ("fk_reward/high.py", "from fk_reward.rewards import base", {"fk_reward.high -> rewards"}),
        ("pipelines/low.py", "from fk_reward.smc import weights\nfrom fk_reward.rewards import base", set()),
    ],
)
def test_saboteur_imports_of_a_higher_layer_are_noticed(tmp_path, path, text, expected):
    assert Layout.of(write_tree(tmp_path, {path: text})).running_up == expected


USED = "from fk_reward.search.small import small\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (USED, {"fk_reward/search/small.py"}),
        (USED + "OTHERS = {'small': small}", {"fk_reward/search/small.py"}),
        (USED + "SEARCHES = {}", {"fk_reward/search/small.py"}),
        (USED + "SEARCHES: dict[str, object] = {'small': small}", set()),
        (USED + "SEARCHES = {'small': 'fk_reward.search.small:small'}", set()),
        ("from fk_reward.search import small\nSEARCHES = {'small': small.small}", set()),
    ],
)
def test_saboteur_fragments_are_noticed_unless_they_are_what_people_add(tmp_path, user, expected):
    changes = {"fk_reward/search/small.py": "def small(): pass\n", "fk_reward/search/user.py": LONG + user}
    assert Layout.of(write_tree(tmp_path, changes)).fragments == expected


def test_a_command_is_a_file_with_a_function_of_its_name():
    sources = [
        Source(Path(f"fk_reward/cli/{name}.py"), f"fk_reward.cli.{name}", "def score(): pass\n")
        for name in ("app", "score", "errors")
    ]
    imports = [Import("fk_reward.cli.app", f"fk_reward.cli.{name}", AT_IMPORT) for name in ("score", "errors")]
    assert added_modules(sources, imports) == {"fk_reward.cli.score"}


def test_what_is_in_order_is_taken_out_of_the_lists():
    text = 'A = (\n    "a -> b",\n    "c",\n)\n# "c"\n'
    assert not_yet.without(text, {"c", "d"}) == 'A = (\n    "a -> b",\n)\n# "c"\n'


def test_the_real_tables_are_found():
    sources = read_sources(ROOT)
    assert "fk_reward.rewards.clipscore" in added_modules(sources, [])
