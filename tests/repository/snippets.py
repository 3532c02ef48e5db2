"""The Python blocks of a Markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:<!-- skip: (?P<reason>[^\n]*?) -->\s*\n)?^```python[^\n]*\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


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
