"""What is still against the rules of `test_layout_rules.py`. These lists only get shorter, and end empty.

    python -m tests.repository.not_yet    # takes out what is in order by now

A file that was renamed or merged is listed by its new name; nothing else is ever added.
"""

from __future__ import annotations

from pathlib import Path

from tests.repository.layout import ROOT

IN_CIRCLES: tuple[str, ...] = ()
"""Modules that import one another, in whatever way."""

RUNNING_UP: tuple[str, ...] = ()
"""`module -> layer`: modules that import something of a layer above their own."""

FRAGMENTS: tuple[str, ...] = ()
"""Files under 100 lines with one importer."""


def without(text: str, names: set[str]) -> str:
    """The text of this file without the lines that hold these names."""
    gone = {f'"{name}",' for name in names}
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() not in gone)


def main() -> None:
    """Take out of this file what is in order by now."""
    from tests.repository.layout_rules import Layout  # noqa: PLC0415 (which other code reads without these lists)

    layout, path = Layout.of(ROOT), Path(__file__)
    stale = {*IN_CIRCLES} - layout.in_circles | {*RUNNING_UP} - layout.running_up | {*FRAGMENTS} - layout.fragments
    path.write_text(without(path.read_text(encoding="utf-8"), stale), encoding="utf-8")


if __name__ == "__main__":
    main()
