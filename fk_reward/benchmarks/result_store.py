"""Results on disk, a JSON line each: a long benchmark can be stopped, resumed and shared between processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ResultStore:
    """A folder with `settings.json` and one `results-*.jsonl` for each writing process.

    Args:
        folder: made where it is missing.
        settings: whatever the results depend on, as JSON; must be equal to what the folder was begun with. None to
            read what is there.

    Attributes:
        folder: where the results are.
        settings: what the folder was begun with.

    Raises:
        ValueError: when the folder holds results of other settings; the message names the differences.
        FileNotFoundError: without settings, when the folder holds no results.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     ResultStore(folder, {"seed": 0}).append([{"prompt": 3, "correct": True}])
        ...     ResultStore(folder, {"seed": 0}).load()
        [{'prompt': 3, 'correct': True}]
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / "settings.json"
        if settings is not None and not path.exists():
            _write_at_once(path, json.dumps(settings, indent=2) + "\n")
        if not path.exists():
            raise FileNotFoundError(f"{self.folder} holds no results: {path.name} is missing.")
        self.settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if settings is not None:
            self._refuse_other_settings(json.loads(json.dumps(settings)))

    def load(self) -> list[dict[str, Any]]:
        """All results so far, of all processes. A line that is still being written is left out."""
        lines: list[str] = []
        for path in sorted(self.folder.glob("results-*.jsonl")):
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            lines += whole.splitlines()
        return [json.loads(line) for line in lines]

    def append(self, results: Sequence[Mapping[str, Any]], *, writer: str = "0") -> None:
        """Add results in one write.

        Args:
            results: one dictionary each.
            writer: name of this process; no two processes may share it at one time.
        """
        path = self.folder / f"results-{writer}.jsonl"
        _drop_unfinished_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(result) + "\n" for result in results))

    def _refuse_other_settings(self, settings: dict[str, Any]) -> None:
        found = self.settings
        names = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
        if names:
            changes = ", ".join(f"{name} {found.get(name)!r} -> {settings.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.folder} holds results of other settings ({changes}); choose another folder or remove it."
            )


def _write_at_once(path: Path, text: str) -> None:
    """Another process that starts at the same time sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _drop_unfinished_line(path: Path) -> None:
    """Remove what a killed process left behind the last line break."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
