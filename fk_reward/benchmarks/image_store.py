"""Images on disk in GenEval's folder layout, written such that a killed run leaves nothing that looks like a result.

A run is a folder with a manifest, which holds everything that its images depend on, and a folder for each prompt. A
prompt's folder is written under another name and renamed when it is complete. Verdicts and scores go into notes later:
JSON files that are valid only as long as they hold the digests of the images beside them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from fk_reward.benchmarks.store import refuse_changes
from fk_reward.documents import parse_json
from fk_reward.durable_files import read_json, write_whole
from fk_reward.image_files import UnreadableImageError, read_image
from fk_reward.text import text_problem

logger = logging.getLogger(__name__)

MADE = "made"
"""The note that a finished prompt carries: what its images cost."""

MANIFEST = "manifest.json"
OF_ALL_RUNS = ("suite", "model", "num_samples", "seed", "num_steps", "guidance_scale")
"""What the runs in one folder have in common, so that they can be compared prompt by prompt."""


@dataclass(frozen=True)
class PromptFolder:
    """Folder of one prompt: `00007/metadata.jsonl`, `00007/samples/0000.png`, ..., and notes about the images.

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

    def write(self, metadata: Mapping[str, Any], images: Sequence[Image.Image], *, note: Mapping[str, Any]) -> None:
        """Write a finished prompt, and replace whatever is there.

        Args:
            metadata: its record in the suite.
            images: its samples.
            note: goes into the note `MADE`.
        """
        draft = self.root / f".{self.path.name}.draft"  # one name for all attempts: a later one clears an earlier one
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "samples").mkdir(parents=True)
        files = {f"{sample:04d}.png": _png(image) for sample, image in enumerate(images)}
        for name, content in files.items():
            write_whole(draft / "samples" / name, content)
        write_whole(draft / "metadata.jsonl", json.dumps(metadata) + "\n")
        digests = {name: _digest(content) for name, content in files.items()}
        write_whole(draft / f"{MADE}.json", _note_text(digests, note))
        # A folder cannot be renamed onto one with files. Killed in between, the prompt is missing and is made again.
        shutil.rmtree(self.path, ignore_errors=True)
        draft.rename(self.path)

    def is_finished(self, record: Mapping[str, Any]) -> bool:
        """Whether a prompt has its record and exactly the images that were made for it.

        Raises:
            ValueError: it was made for another prompt.
        """
        try:
            self.refuse_other_record(record)
        except FileNotFoundError:
            finished = False
        else:
            finished = self.read_note(MADE) is not None
        if self.path.exists() and not finished:
            logger.warning("%s is damaged: this prompt will be made again.", self.path)
        return finished

    def refuse_other_record(self, record: Mapping[str, Any]) -> None:
        """Raise if the folder was made for another prompt.

        Raises:
            FileNotFoundError: it has no record.
            ValueError: the records differ.
        """
        metadata = self.read_metadata()
        if metadata != record:
            raise ValueError(
                f"{self.path} was made for {metadata['prompt']!r}, but prompt {self.index} of the suite is "
                f"{record['prompt']!r}: the folder is of another suite, or mixes two. Name another folder or suite."
            )

    def read_metadata(self) -> dict[str, Any]:
        """The prompt's record in the suite.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: it is not one JSON object.
        """
        path = self.path / "metadata.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a prompt's folder should hold the record that it is for.")
        try:
            metadata = parse_json(path.read_text(encoding="utf-8"), path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
        if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
            raise ValueError(f"{path} should hold one JSON object with a prompt, got {str(metadata)[:80]}.")
        if (problem := text_problem(metadata["prompt"])) is not None:
            raise ValueError(f"{path}: of the prompt: {problem}")
        return metadata

    def image_paths(self) -> list[Path]:
        """The samples in the order of their numbers; other names are skipped, as by the official scripts.

        Raises:
            FileNotFoundError: no image.
        """
        paths = [path for path in self.path.glob("samples/*.png") if re.fullmatch(r"\d+", path.stem)]
        if not paths:
            raise FileNotFoundError(f"{self.path / 'samples'} holds no image named 0000.png or the like.")
        return sorted(paths, key=lambda path: (int(path.stem), path.stem))

    def read_images(self) -> list[Image.Image]:
        """The samples, decoded to their end.

        Raises:
            FileNotFoundError: no image.
            ValueError: one cannot be read to its end.
        """
        return [read_sample(path) for path in self.image_paths()]

    def read_note(self, name: str) -> dict[str, Any] | None:
        """Read what is known about the images as they are now; None if there is no note, or one of other images."""
        try:
            note = parse_json((self.path / f"{name}.json").read_text(encoding="utf-8"), name)
        # A damaged note counts as missing: its content is made again.
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        digests = note.pop("pictures", None) if isinstance(note, dict) else None
        return note if digests == self._digests() else None

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a note about the images as they are now."""
        write_whole(self.path / f"{name}.json", _note_text(self._digests(), content))

    def _digests(self) -> dict[str, str]:
        paths = sorted(self.path.glob("samples/*.png"))
        return {path.name: _digest(path.read_bytes()) for path in paths if path.stem.isdecimal()}


def prompt_folders(root: Path) -> list[PromptFolder]:
    """Folders of a run's prompts, by number: those whose name is a number, as for the official scripts.

    Raises:
        FileNotFoundError: no such folder.
    """
    entries = root.iterdir() if root.is_dir() else ()
    names = [entry.name for entry in entries if entry.is_dir() and re.fullmatch(r"\d{5}", entry.name)]
    if not names:
        raise FileNotFoundError(f"{root} holds no images in GenEval's layout: it has no 00000, 00001, ...")
    return [PromptFolder(root, int(name)) for name in sorted(names)]


def complete_folders(root: Path, records: Sequence[Mapping[str, Any]]) -> list[PromptFolder]:
    """Folders of the prompts of a run that has all prompts of a suite, and no others.

    Raises:
        FileNotFoundError: no such folder, a prompt without images or without its record.
        ValueError: prompts of another suite, or prompts that are missing.
    """
    folders = prompt_folders(root)
    surplus = [folder for folder in folders if folder.index >= len(records)]
    if surplus:
        raise ValueError(f"{surplus[0].path} is beyond the suite's {len(records)} prompts: it is of another suite.")
    for folder in folders:
        folder.refuse_other_record(records[folder.index])
        folder.image_paths()
    if len(folders) < len(records):
        missing = min(set(range(len(records))) - {folder.index for folder in folders})
        raise ValueError(
            f"{root} has {len(folders)} of the suite's {len(records)} prompts, {missing:05d} is missing: finish "
            "generating, or name the suite's prompts with a file."
        )
    return folders


class ImageMethod(Protocol):
    """A method whose answers are images: of each sample a list of them, and a note about what they cost.

    Attributes:
        name: of the method and of its folder.
        manifest: everything that its images depend on, as JSON, with `settings`, `suite` and `model`.
    """

    name: str
    manifest: dict[str, Any]


class ImageStore:
    """A folder of runs, one for each method.

    Args:
        out: the folder.
        about: written into each manifest when its run begins, without being compared: the command, the preset.
    """

    def __init__(self, out: Path, *, about: Mapping[str, Any] | None = None) -> None:
        self.out, self.about = out, dict(about or {})

    def begin(self, method: ImageMethod, /) -> None:
        """Begin the run of a method, or go on with one that depends on the same.

        Raises:
            ValueError: the folder holds a run of other settings, runs beside it are of another suite or model, or it
                holds files that are of no run.
        """
        open_run(self.out / method.name, method.manifest, about=self.about)

    def missing(
        self, method: ImageMethod, samples: Sequence[Mapping[str, Any]], indices: Sequence[int], /
    ) -> list[int]:
        """Those of some prompts that are not finished.

        Raises:
            ValueError: when a prompt's folder was made for another prompt.
        """
        root = self.out / method.name
        return [index for index in indices if not PromptFolder(root, index).is_finished(samples[index])]

    def write(
        self,
        method: ImageMethod,
        indices: Sequence[int],
        samples: Sequence[Mapping[str, Any]],
        answers: Sequence[tuple[Sequence[Image.Image], Mapping[str, Any]]],
        /,
    ) -> None:
        """Write the images of finished prompts."""
        for index, record, (images, note) in zip(indices, samples, answers, strict=True):
            PromptFolder(self.out / method.name, index).write(record, images, note=note)


def open_run(folder: Path, manifest: Mapping[str, Any], *, about: Mapping[str, Any]) -> None:
    """Begin a run, or go on with one that depends on the same.

    Args:
        folder: of the run.
        manifest: everything that its images depend on.
        about: written beside it when the run begins, without being compared.

    Raises:
        ValueError: as `ImageStore.begin`.
    """
    # The runs beside it first: a run that does not fit them must not write a manifest.
    for other in read_manifests(folder.parent):
        refuse_changes(folder.parent, _common(other), _common(manifest))
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(
                f"{folder} holds files but no {MANIFEST}: it is not a run of this command. Name another folder."
            )
        write_whole(folder / MANIFEST, json.dumps({**manifest, **about}, indent=2) + "\n")
    found = read_manifest(folder)
    # Without `about`, which the manifest on disk holds besides.
    refuse_changes(folder, {name: found.get(name) for name in manifest}, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not a JSON object.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {MANIFEST} is missing.")
    found = read_json(path, remedy="Put back a copy of it, or name a new folder.")
    if not isinstance(found.get("settings"), dict):
        raise ValueError(f"{path} is not the manifest of a run.")
    return found


def read_manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """The manifests of all runs in a folder."""
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        yield read_manifest(path.parent)


def refuse_mixed_runs(folder: Path) -> None:
    """Raise if the runs of a folder cannot be compared.

    Raises:
        ValueError: they have different suites, models, seeds or numbers of steps.
    """
    commons = [_common(manifest) for manifest in read_manifests(folder)]
    for common in commons[1:]:
        refuse_changes(folder, commons[0], common)


def find_runs(folder: Path) -> list[Path]:
    """The folders of the runs in a folder, or the folder itself where its images lie there, whoever made them.

    A run that was begun and then given up has a manifest and not one image: it is skipped, with a warning.

    Raises:
        NotADirectoryError: no such folder.
        FileNotFoundError: no run in it.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"There is no folder {folder}.")
    if (folder / MANIFEST).exists() or any(path.name.isdecimal() and path.is_dir() for path in folder.iterdir()):
        return [folder]
    runs = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}")) if has_images(path.parent)]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no run and no images in GenEval's layout (00000/samples/0000.png).")
    return runs


def has_images(run: Path) -> bool:
    """Whether a run has a finished prompt; a warning names one that has none."""
    found = any(path.is_dir() and re.fullmatch(r"\d{5}", path.name) for path in run.iterdir())
    if not found:
        logger.warning("%s was begun and holds no images: it is left out. Delete it, or generate its images.", run)
    return found


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a suite.

    Example:
        >>> records_digest([{"prompt": "a"}]) == records_digest([{"prompt": "b"}])
        False
    """
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def read_sample(path: Path) -> Image.Image:
    """Decode an image to its end.

    Raises:
        ValueError: it is damaged, or not an image; the message names the file.
    """
    try:
        return read_image(path)
    except UnreadableImageError as error:
        remedy = "Generate again, which makes this prompt again and keeps the others."
        raise UnreadableImageError(f"{error}. {remedy}") from error


def _common(manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = {**manifest["settings"], **{name: manifest[name] for name in ("suite", "model")}}
    return {name: known[name] for name in OF_ALL_RUNS}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _note_text(digests: Mapping[str, str], content: Mapping[str, Any]) -> str:
    # An older word for images: renaming this key would invalidate the notes of all earlier runs.
    return json.dumps({**content, "pictures": digests}, indent=2) + "\n"
