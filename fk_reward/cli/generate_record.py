"""`result.json` of `fk-reward generate`: written after each prompt, so that the command can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.store import settings_changes
from fk_reward.durable_files import read_json, write_whole
from fk_reward.output_folder import prepare_folder

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_MADE = ("complete", "seconds", "results")
"""What `result.json` has beside the settings."""


class GenerateRecord:
    """Settings and finished prompts of a folder; the file is replaced in one step, so that it can always be read.

    Args:
        folder: of the results.
        content: of the file; None to begin anew.

    Attributes:
        results: index of a prompt -> what was made of it, of those that are finished.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {name: value for name, value in (content or {}).items() if name not in _MADE}
        self.results: dict[int, dict[str, Any]] = {}
        self._seconds = float((content or {}).get("seconds", 0.0))
        for result in (content or {}).get("results", ()):
            if self._is_whole(result):
                self.results[result["index"]] = result

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> GenerateRecord:
        """Begin a folder, or go on with one that was begun with the same settings.

        Args:
            folder: of the results, which this process holds.
            settings: those that are known before a model is loaded.
            overwrite: begin anew, whatever the folder holds.

        Raises:
            FileExistsError: it holds something that is not of this command.
            ValueError: it was begun with other settings, which are named, or its `result.json` is damaged.
        """
        path = folder / RESULT_FILE
        if overwrite or not path.exists():
            prepare_folder(folder, overwrite=overwrite)
            return cls(folder)
        content = read_json(path, remedy="Name another folder, or add --overwrite to begin anew.")
        if not isinstance(content.get("results"), list):
            raise ValueError(f"{path} was not written by this command. Name another folder, or add --overwrite.")
        record = cls(folder, content)
        record.check(settings)
        return record

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that differ from those that the folder was begun with; some of them may be left out.

        Raises:
            ValueError: they differ; the message names the differences.
        """
        if not self.settings:
            return
        changes = settings_changes({name: self.settings.get(name) for name in settings}, settings)
        if changes:
            raise ValueError(
                f"{self.folder} holds results of other settings ({changes}). Name another folder, or add --overwrite "
                "to begin anew."
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take all settings down, before the first prompt is drawn."""
        self.check(settings)
        self.settings = dict(settings)
        self._write()

    def missing(self, num_prompts: int) -> list[int]:
        """Indices of the prompts that are not finished."""
        return [index for index in range(num_prompts) if index not in self.results]

    def add(self, index: int, result: Mapping[str, Any], *, seconds: float) -> None:
        """Take a finished prompt down, whose files are written.

        Args:
            index: of the prompt.
            result: what was made of it; with `images`, `trace` and `lineage`.
            seconds: that it took.
        """
        files = {name: _digest(self.folder / name) for name in _needed(result)}
        self.results[index] = {"index": index, **result, "files": files}
        self._seconds += seconds
        self._write()

    def _write(self) -> None:
        results = [self.results[index] for index in sorted(self.results)]
        complete = len(results) == len(self.settings["prompts"])
        content = {**self.settings, "complete": complete, "seconds": self._seconds, "results": results}
        write_whole(self.folder / RESULT_FILE, json.dumps(content, indent=2) + "\n")

    def _is_whole(self, result: Any) -> bool:
        """Whether what was made of a prompt is there, as it was when it was taken down."""
        if not (isinstance(result, dict) and isinstance(result.get("files"), dict) and "index" in result):
            return False
        changed = [name for name, digest in result["files"].items() if _digest(self.folder / name) != digest]
        if changed:
            names = ", ".join(changed)
            logger.warning("%s: missing or changed since it was made; prompt %d is made again.", names, result["index"])
        return not changed


def _needed(result: Mapping[str, Any]) -> Iterable[str]:
    """Files without which a prompt is not finished; the lineage is an ornament."""
    return (*result["images"], result["trace"])


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None
