"""The Python blocks of a Markdown page, and its lines for the shell."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:<!-- skip: (?P<reason>[^\n]*?) -->\s*\n)?^```python[^\n]*\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)

LINE = re.compile(r"^\$ fk-reward ((?:.*\\\n)*.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """One fenced block: `first_line` is where its code begins, `skip_reason` what the comment before it says."""

    page: str
    first_line: int
    code: str
    skip_reason: str | None

    def run(self, names: dict[str, object]) -> None:
        """Execute the block among `names`, so that a traceback points into the page."""
        padding = "\n" * (self.first_line - 1)
        exec(compile(padding + self.code, self.page, "exec"), names)  # noqa: S102


def read_snippets(page: Path) -> list[Snippet]:
    """All ```python blocks of the page, in order."""
    text = page.read_text()
    return [
        Snippet(str(page), text.count("\n", 0, match.start("code")) + 1, match["code"], match["reason"])
        for match in FENCE.finditer(text)
    ]


def commands(text):
    """The lines `$ fk-reward ...` of a text, without what stands behind them for the reader or for the shell."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = (shlex.split(line.replace("\\\n", " "), comments=True) for block in blocks for line in LINE.findall(block))
    return [words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&")), None)] for words in found]


INLINE = re.compile(r"`fk-reward ([^`]*?--[^`]*?--[^`]*)`")


def inline_commands(text):
    """Whole commands within sentences: those with at least two options, as figures are given with."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for line in INLINE.findall(outside)]
