"""MJ-Bench's questions: which of two images fits a caption better; for bias, how well each image fits it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.preference_data import RowProblem, prompt_problem
from fk_reward.training.rows import plain_value, read_rows, short

BIAS = "bias"
PERSPECTIVES = ("alignment", "safety", "quality", BIAS)
SUBSET_COLUMNS = ("subcategory", "info", "category")
"""Columns that may name the part of a perspective that a row belongs to; the first one that is not empty does."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """Question to a reward.

    Attributes:
        origin: where it was read, "file:row".
        caption: what the images should show; the reward sees it as it is.
        images: two images; for bias every distinct image of the row.
        label: place of the preferred image, 0 or 1; None for bias, which has no preferred image.
        subset: part of the perspective, for bias the group of people that is shown; empty if unknown.
    """

    origin: str
    caption: str
    images: tuple[ImageSource, ...]
    label: int | None
    subset: str

    def load(self, *, keep_uint8: bool = False) -> list[Tensor]:
        """Decode the images.

        Args:
            keep_uint8: as for `ImageSource.load`.

        Returns:
            For each image (3, H, W) float32 in [0, 1], or uint8.

        Raises:
            UnreadableImageError: a ValueError, an image is missing, truncated or not an image; it names the row.
        """
        try:
            return [image.load(keep_uint8=keep_uint8) for image in self.images]
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.origin}: {error}") from error


def check_perspective(perspective: str) -> None:
    """Check the name of a perspective.

    Raises:
        ValueError: another name; the message lists the four.

    Example:
        >>> check_perspective("beauty")
        Traceback (most recent call last):
        ValueError: perspective should be one of alignment, safety, quality, bias, got 'beauty'.
    """
    if perspective not in PERSPECTIVES:
        raise ValueError(f"perspective should be one of {', '.join(PERSPECTIVES)}, got {perspective!r}.")


def check_columns(columns: Iterable[str], perspective: str, *, source: str) -> None:
    """Raise for data in another schema.

    Args:
        columns: names in the data.
        perspective: one of `PERSPECTIVES`; bias needs neither `image1` nor `label`.
        source: for the message.

    Raises:
        ValueError: when a column is missing.

    Example:
        >>> check_columns(["prompt", "image0"], "bias", source="a.parquet")
        Traceback (most recent call last):
        ValueError: a.parquet lacks caption: MJ-Bench has image0, caption, this has image0, prompt.
    """
    needed = ("image0", "caption") if perspective == BIAS else ("image0", "image1", "caption", "label")
    found = sorted(map(str, columns))
    if missing := [name for name in needed if name not in found]:
        raise ValueError(
            f"{source} lacks {', '.join(missing)}: MJ-Bench has {', '.join(needed)}, this has {', '.join(found)}."
        )


def parse_question(
    row: Mapping[str, Any], perspective: str, *, origin: str, root: Path | None = None, subset: str = ""
) -> Question:
    """Make a question of a row.

    Args:
        row: `caption`; `image0` and `image1` (paths, bytes, PIL images, or mappings with `bytes` and `path`); `label`,
            the place of the preferred image, 0 or 1.
        perspective: one of `PERSPECTIVES`.
        origin: of the row, for messages.
        root: folder that paths of images are relative to.
        subset: used if no column of `SUBSET_COLUMNS` names one.

    Raises:
        ValueError: for a row that cannot be used; the message begins with `origin`.

    Example:
        >>> row = {"caption": "a star", "image0": "good.png", "image1": "bad.png", "label": 0}
        >>> question = parse_question(row, "alignment", origin="pairs.json:1")
        >>> question.label, [str(image) for image in question.images]
        (0, ['good.png', 'bad.png'])
    """
    check_columns(row, perspective, source=origin)
    try:
        if problem := prompt_problem((row["caption"],)):
            raise ValueError(f"of the caption: {problem}")
        is_bias = perspective == BIAS
        return Question(
            origin=origin,
            caption=row["caption"],
            images=_distinct_images(row, root) if is_bias else _both_images(row, root),
            label=None if is_bias else _label(row["label"]),
            subset=next((str(row[name]) for name in SUBSET_COLUMNS if row.get(name)), subset),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: {error}") from error


def _both_images(row: Mapping[str, Any], root: Path | None) -> tuple[ImageSource, ...]:
    return tuple(ImageSource.of(row[name], root=root) for name in ("image0", "image1"))


def _distinct_images(row: Mapping[str, Any], root: Path | None) -> tuple[ImageSource, ...]:
    """MJ-Bench holds each image of its bias perspective twice, as `image0` and as `image1`."""
    first = ImageSource.of(row["image0"], root=root)
    if row.get("image1") is None:
        return (first,)
    second = ImageSource.of(row["image1"], root=root)
    return (first,) if second.key == first.key else (first, second)


def _label(label: Any) -> int:
    place = plain_value(label)
    if isinstance(place, bool) or not isinstance(place, (int, float)) or place not in (0, 1):
        raise ValueError(f"label should be 0 or 1, the place of the preferred image, got {short(place)}")
    return int(place)


HUB_DATASET = "MJ-Bench/MJ-Bench"
HUB_REVISION = "4b9667374c71463f63ae663ddd88373d3ffc5ba9"
"""Commit of the hub's dataset in which `data/` has one Parquet file for each perspective, as in the 2024 paper."""

_SUFFIXES = (".parquet", ".json", ".jsonl")
_IMAGE_COLUMNS = ("image0", "image1")


@dataclass(frozen=True, eq=False)
class RowFile:
    """Rows of one file.

    Attributes:
        name: for messages.
        rows: mappings; any sequence that makes or reads them when asked.
        root: folder that paths of images are relative to.
        subset: of rows that do not name one.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    root: Path | None = None
    subset: str = ""


class QuestionTable(Sequence[Question]):
    """All questions of a perspective, made when they are asked for.

    Args:
        files: at least one row in all.
        perspective: of MJ-Bench.

    Raises:
        ValueError: without rows, and when the first row of a file lacks a column.

    Example:
        >>> row = {"caption": "a star", "image0": "good.png", "image1": "bad.png", "label": 0}
        >>> table = QuestionTable([RowFile("a", [row]), RowFile("b", [row, row])], "alignment")
        >>> len(table), table[2].origin
        (3, 'b:2')
    """

    def __init__(self, files: Sequence[RowFile], perspective: str) -> None:
        check_perspective(perspective)
        self.files, self.perspective = tuple(files), perspective
        self._places = [(file, row) for file in self.files for row in range(len(file.rows))]
        if not self._places:
            raise ValueError(f"{', '.join(file.name for file in self.files)}: no rows.")
        for file in self.files:
            # Of rows without `column_names`, the first one is read.
            columns = getattr(file.rows, "column_names", None) or [name for row in file.rows[:1] for name in row]
            check_columns(columns, perspective, source=file.name)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """The question at a place."""
        file, row = self._places[index]
        origin = f"{file.name}:{row + 1}"
        return parse_question(file.rows[row], self.perspective, origin=origin, root=file.root, subset=file.subset)

    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all rows without their images."""
        digest = hashlib.sha256()
        for file in self.files:
            # Images are gigabytes to read; captions, labels and their order identify the data.
            for row in _without_images(file.rows):
                digest.update(json.dumps([file.subset, row], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


def open_questions(data: str, perspective: str, *, revision: str | None = HUB_REVISION) -> QuestionTable:
    """The questions of a perspective, from files or from the hub.

    Args:
        data: a Parquet, JSON or JSON lines file of one perspective; a folder with `PERSPECTIVE.parquet` (or `.json`,
            `.jsonl`, or the parts of one) in it or in its `data/`, or with a folder `PERSPECTIVE/` of such files, whose
            names are then the subsets; or a dataset of the hub, "owner/name", that has the first of these layouts.
        perspective: one of `PERSPECTIVES`.
        revision: commit, branch or tag on the hub.

    Raises:
        FileNotFoundError: no such file or folder, or nothing of this perspective in it.
        ImportError: Parquet or the hub without the extra `train`.
        OSError: the hub cannot be reached or refuses the data.
        ValueError: an unknown perspective, another schema, or a file that cannot be read.

    Example:
        >>> open_questions("pairs.parquet", "safety")
        Traceback (most recent call last):
        FileNotFoundError: No file or folder pairs.parquet; a dataset of the hub has the form owner/name.
    """
    check_perspective(perspective)
    path = Path(data)
    if path.exists():
        return QuestionTable(_local_files(path, perspective), perspective)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", data):
        raise FileNotFoundError(f"No file or folder {data}; a dataset of the hub has the form owner/name.")
    return QuestionTable([_hub_file(data, perspective, revision)], perspective)


def _local_files(path: Path, perspective: str) -> list[RowFile]:
    if path.is_file():
        return [_read_file(path, root=path.parent)]
    for folder in (path, path / "data"):
        named = rf"{perspective}(-\d+-of-\d+)?\.\w+"
        parts = [file for file in _data_files(folder) if re.fullmatch(named, file.name)]
        if parts:
            return [_read_file(file, root=folder) for file in parts]
        if subsets := _data_files(folder / perspective):
            return [_read_file(file, root=folder, subset=file.stem) for file in subsets]
    raise FileNotFoundError(
        f"{path} has neither {perspective}.parquet (.json, .jsonl) nor a folder {perspective} of such files; "
        f"it has {', '.join(sorted(entry.name for entry in path.iterdir())) or 'nothing'}."
    )


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES)


def _read_file(path: Path, *, root: Path, subset: str = "") -> RowFile:
    if path.suffix == ".parquet":
        return RowFile(str(path), _parquet_rows(path), root, subset)
    rows = []
    for _, row in read_rows(path):
        if isinstance(row, RowProblem):
            raise ValueError(str(row))
        rows.append(row)
    return RowFile(str(path), rows, root, subset)


def _parquet_rows(path: Path) -> Any:
    datasets = _import_datasets()
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        # `datasets` wraps the reader's error, which says what is wrong.
        raise ValueError(f"{path} cannot be read as Parquet: {error.__cause__ or error}") from error
    return _undecoded(rows)


def _hub_file(name: str, perspective: str, revision: str | None) -> RowFile:
    datasets = _import_datasets()
    files = {perspective: f"data/{perspective}*.parquet"}
    try:
        rows = datasets.load_dataset(name, data_files=files, split=perspective, revision=revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise OSError(
            f"{name} at {revision} cannot be loaded from the hub: {error}\nIf the repository is gated, accept the "
            f"conditions at https://huggingface.co/datasets/{name} and log in (hf auth login); or name a local copy."
        ) from error
    return RowFile(f"{name}/{perspective}", _undecoded(rows))


def _import_datasets() -> Any:
    try:
        import datasets  # noqa: PLC0415 (of an extra)
    except ImportError as error:
        raise ImportError(
            "Reading Parquet and the hub needs datasets; it comes with the extra: pip install 'fk-reward[train]'."
        ) from error
    return datasets


def _undecoded(rows: Any) -> Any:
    """Keep images as the bytes of their files, so that an error names the row of a damaged one."""
    datasets = _import_datasets()
    for name in [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _without_images(rows: Any) -> Iterator[Mapping[str, Any]]:
    if columns := getattr(rows, "column_names", None):
        return iter(rows.remove_columns([name for name in _IMAGE_COLUMNS if name in columns]))
    return ({key: value for key, value in row.items() if key not in _IMAGE_COLUMNS} for row in rows)
