"""Every file and every name that docs/architecture.md points at exists, and each way has under ten hops."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository.layout import ROOT

PAGE = ROOT / "docs" / "architecture.md"
POINTER = re.compile(r"`(?P<path>(?:\w+/)+\w+\.py)(?:: (?P<names>[\w.]+(?:, [\w.]+)*))?`")
HOP = re.compile(r"^\| (\d+) \w+ \|", re.MULTILINE)


def _defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def missing(text: str, root: Path = ROOT) -> list[str]:
    """What a page points at and is not there: files, and "file: name" for names that a file does not define."""
    found = []
    for match in POINTER.finditer(text):
        path, names = match["path"], (match["names"] or "").split(", ")
        if not (root / path).is_file():
            found.append(path)
            continue
        defined = set(_defined(ast.parse((root / path).read_text(encoding="utf-8")).body))
        found += [f"{path}: {name}" for name in names if name and name not in defined]
    return found


def test_everything_exists():
    text = PAGE.read_text(encoding="utf-8")
    assert len(POINTER.findall(text)) > 40
    assert missing(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`rewards/base.py: Reward.__call__, CallableReward`", []),
        ("`rewards/base.py: Reward.rate`", ["rewards/base.py: Reward.rate"]),
        ("`rewards/base.py: Reward, Rewarding` and `rewards/base.py`", ["rewards/base.py: Rewarding"]),
        ("`rewards/bases.py: Reward`", ["rewards/bases.py"]),
    ],
)
def test_a_made_up_name_is_found(text, expected):
    assert missing(text) == expected


def test_no_code_span_is_passed_over():
    spans = re.findall(r"`([^`\n]+\.py[^`\n]*)`", PAGE.read_text(encoding="utf-8"))
    assert [span for span in spans if not span.startswith("python ") and not POINTER.fullmatch(f"`{span}`")] == []


def test_each_way_has_under_ten_hops():
    hops = [int(number) for number in HOP.findall(PAGE.read_text(encoding="utf-8"))]
    assert hops.count(1) == 3
    assert max(hops) < 10
