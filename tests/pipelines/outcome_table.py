"""The table of outcomes in docs/pipelines.md; `python -m tests.pipelines.outcome_table` writes it anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.pipelines.outcomes import Outcome, examine
from tests.tiny.families import FAMILIES, GROUPS

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
BEGIN, END = "<!-- outcomes: python -m tests.pipelines.outcome_table -->", "<!-- end of outcomes -->"
COLUMNS = ("family", "pipeline", "outcome", "scheduler", "several prompts", "note")


def row(outcome: Outcome) -> str:
    """The row of one class."""
    group = next(title for title, families in GROUPS.items() if outcome.family in families)
    scheduler = f"`{outcome.scheduler}`" if outcome.scheduler else ""
    note = FAMILIES[outcome.family].note
    cells = (group, f"`{outcome.family}`", outcome.outcome, scheduler, outcome.prompts, note)
    return "| " + " | ".join(cells) + " |"


def documented_rows(page: str) -> dict[str, str]:
    """Class to row, of the page as it stands."""
    table = page.split(BEGIN)[1].split(END)[0].strip().splitlines()
    rows = [line for line in table if line.startswith("| ")][1:]
    return {line.split("|")[2].strip(" `"): line for line in rows}


def written(page: str, outcomes: Mapping[str, str]) -> str:
    """The page with these rows, in the order of `FAMILIES`."""
    header = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
    table = "\n".join([header, *(outcomes[name] for name in FAMILIES)])
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main(names: Iterable[str]) -> None:
    """Examine these classes, or all, and write their rows."""
    page = PAGE.read_text(encoding="utf-8")
    rows = {name: line for name, line in documented_rows(page).items() if name in FAMILIES}
    for name in list(names) or FAMILIES:
        outcome = examine(name)
        rows[name] = row(outcome)
        sys.stdout.write(f"{rows[name]} {outcome.remark}\n")
    PAGE.write_text(written(page, rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
