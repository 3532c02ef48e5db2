"""The sizes and manners of CONTRIBUTING.md, and proof that breaking them is noticed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.house import body_lines, functions
from tests.repository.code_rules import MAX_BODY_LINES, USUAL_BODY_LINES, is_drawer, library_sins
from tests.repository.layout import LIBRARY_FOLDERS, ROOT, python_files

ALL_CODE = python_files(*LIBRARY_FOLDERS, "examples", "scripts", "tests")
SHIPPED_CODE = python_files(*LIBRARY_FOLDERS, "examples", "scripts")
LIBRARY = python_files(*LIBRARY_FOLDERS)

SINS = """
import sys
from os import *
def f(path, model):
    global x
    assert path
    print(path)
    sys.path.append(path)
    torch.load(path)
    torch.load(path, weights_only=False)
    Model.from_pretrained(path, trust_remote_code=True)
    try: pass
    except Exception: pass
    try: pass
    except: pass
"""


def test_no_function_is_long():
    long = {
        f"{path}:{function.name}": lines
        for path in SHIPPED_CODE
        for function in functions(ast.parse((ROOT / path).read_text()))
        if (lines := body_lines(function)) > MAX_BODY_LINES
    }
    assert long == {}


def test_nine_functions_in_ten_are_under_twenty_lines():
    lengths = [body_lines(function) for path in LIBRARY for function in functions(ast.parse((ROOT / path).read_text()))]
    assert sum(length < USUAL_BODY_LINES for length in lengths) >= 0.9 * len(lengths)


def test_no_file_is_a_drawer():
    assert [path for path in ALL_CODE if is_drawer(path)] == []


COSMETIC = (Path("fk_reward/durable_files.py"), "blind except")
"""The one place that may go on after any error: steps that show what is written already."""


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_library_has_manners(path):
    sins = library_sins((ROOT / path).read_text())
    assert [sin for sin in sins if (path, sin.split(": ")[1]) != COSMETIC] == []


def test_sins_are_noticed():
    lines = [int(sin.split(":")[0]) for sin in library_sins(SINS)]
    assert sorted(lines) == [3, 5, 6, 7, 8, 9, 10, 11, 13, 15]


def test_good_manners_pass():
    assert library_sins("torch.load(path, weights_only=True)\nmodel.load(path)\nlogger.info('a')") == []
    assert library_sins("try: pass\nexcept Exception as error: raise ValueError('b') from error") == []


def test_sizes_and_drawers_are_noticed():
    source = 'def f():\n    """Doc.\n\n    More.\n    """\n' + "    x = 1\n" * 41
    (function,) = functions(ast.parse(source))
    assert body_lines(function) == 41
    assert [is_drawer(Path(name)) for name in ("a/utils.py", "common/x.py", "_misc.py", "a/weights.py")] == [
        True
    ] * 3 + [False]
