"""GenEval's folder layout, written such that a killed run leaves nothing that could be taken for a result.

A prompt's folder is written under another name and renamed when it is complete; what is later found out about its
pictures goes into notes, JSON files that count only as long as they hold the digests of the pictures beside them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fk_reward.documents import parse_json
from fk_reward.durable_files import write_whole
from fk_reward.image_files import UnreadableImageError, read_image
from fk_reward.text import text_problem

MADE = "made"
"""The note that a finished prompt carries: what its pictures cost."""


@dataclass(frozen=True)
class PromptFolder:
    """Folder of one prompt: `00007/metadata.jsonl`, `00007/samples/0000.png`, ..., and notes about the pictures.

    Attributes:
        root: folder of the run.
        index: place of the prompt in the suite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     folder = PromptFolder(Path(root), 7)
        ...     folder.write({"prompt": "a photo of a cow"}, [Image.new("RGB", (8, 8))], note={"seconds": 1.5})
        ...     sorted(path.name for path in folder.path.iterdir()), folder.read_note(MADE)
        (['made.json', 'metadata.jsonl', 'samples'], {'seconds': 1.5})
    """

    root: Path
    index: int

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / f"{self.index:05d}"

    def write(self, metadata: Mapping[str, Any], pictures: Sequence[Image.Image], *, note: Mapping[str, Any]) -> None:
        """Write a finished prompt, in place of whatever is there.

        Args:
            metadata: its record in the suite.
            pictures: its samples.
            note: goes into the note `MADE`.
        """
        draft = self.root / f".{self.path.name}.draft"  # one name for all attempts: a later one clears an earlier one
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "samples").mkdir(parents=True)
        files = {f"{sample:04d}.png": _png(picture) for sample, picture in enumerate(pictures)}
        for name, content in files.items():
            write_whole(draft / "samples" / name, content)
        write_whole(draft / "metadata.jsonl", json.dumps(metadata) + "\n")
        digests = {name: _digest(content) for name, content in files.items()}
        write_whole(draft / f"{MADE}.json", _note_text(digests, note))
        shutil.rmtree(self.path, ignore_errors=True)
        draft.rename(self.path)

    def read_metadata(self) -> dict[str, Any]:
        """The prompt's record in the suite.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not one JSON object.
        """
        path = self.path / "metadata.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a prompt's folder should hold the record that it is for.")
        try:
            metadata = parse_json(path.read_text(encoding="utf-8"), path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from error
        if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
            raise ValueError(f"{path} should hold one JSON object with a prompt, got {str(metadata)[:80]}.")
        if (problem := text_problem(metadata["prompt"])) is not None:
            raise ValueError(f"{path}: of the prompt: {problem}")
        return metadata

    def picture_paths(self) -> list[Path]:
        """The samples in the order of their numbers; names that are no number are left out, as by the official scripts.

        Raises:
            FileNotFoundError: there are none.
        """
        paths = [path for path in self.path.glob("samples/*.png") if re.fullmatch(r"\d+", path.stem)]
        if not paths:
            raise FileNotFoundError(f"{self.path / 'samples'} holds no picture named 0000.png or the like.")
        return sorted(paths, key=lambda path: (int(path.stem), path.stem))

    def read_pictures(self) -> list[Image.Image]:
        """The samples, decoded whole.

        Raises:
            FileNotFoundError: there are none.
            ValueError: one cannot be read to its end.
        """
        return [read_picture(path) for path in self.picture_paths()]

    def read_note(self, name: str) -> dict[str, Any] | None:
        """What is known about the pictures as they are now; None where nothing is, or of other pictures only."""
        try:
            note = parse_json((self.path / f"{name}.json").read_text(encoding="utf-8"), name)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        digests = note.pop("pictures", None) if isinstance(note, dict) else None
        return note if digests == self._digests() else None

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a note about the pictures as they are now, whole or not at all."""
        write_whole(self.path / f"{name}.json", _note_text(self._digests(), content))

    def _digests(self) -> dict[str, str]:
        paths = sorted(self.path.glob("samples/*.png"))
        return {path.name: _digest(path.read_bytes()) for path in paths if path.stem.isdecimal()}


def prompt_folders(root: Path) -> list[PromptFolder]:
    """The prompts' folders of a run, by number: those whose name is a number, as for the official scripts.

    Raises:
        FileNotFoundError: there are none.
    """
    entries = root.iterdir() if root.is_dir() else ()
    names = [entry.name for entry in entries if entry.is_dir() and re.fullmatch(r"\d{5}", entry.name)]
    if not names:
        raise FileNotFoundError(f"{root} is no folder of pictures in GenEval's layout: it has no 00000, 00001, ...")
    return [PromptFolder(root, int(name)) for name in sorted(names)]


def read_picture(path: Path) -> Image.Image:
    """Decode a picture to its end.

    Raises:
        ValueError: it is damaged, or no picture; the message names the file.
    """
    try:
        return read_image(path)
    except UnreadableImageError as error:
        remedy = "Generate again, which makes this prompt anew and keeps the others."
        raise UnreadableImageError(f"{error}. {remedy}") from error


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _note_text(digests: Mapping[str, str], content: Mapping[str, Any]) -> str:
    return json.dumps({**content, "pictures": digests}, indent=2) + "\n"
