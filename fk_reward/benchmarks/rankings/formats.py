"""Images of one prompt in the order that people gave them, read from the public files of six benchmarks.

The files and images are the user's copies; nothing of them is in this package.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fk_reward.benchmarks.mjbench.shapes import shapes_questions
from fk_reward.documents import parse_json
from fk_reward.text import shortened
from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.preference_data import RowProblem, prompt_problem
from fk_reward.training.rows import finite_number, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RankedImages:
    """Images of one prompt, and what people think of them.

    Attributes:
        origin: where they were read, for messages.
        prompt: the prompt.
        images: at least two.
        order: a number for each image; the higher one is preferred, equal ones are tied.

    Raises:
        ValueError: fewer than two images, another number of numbers, or no usable prompt.
    """

    origin: str
    prompt: str
    images: tuple[ImageSource, ...]
    order: tuple[float, ...]

    def __post_init__(self) -> None:
        if (problem := prompt_problem((self.prompt,))) is not None:
            raise ValueError(f"{self.origin}: {problem}")
        if len(self.images) < 2 or len(self.images) != len(self.order):
            raise ValueError(
                f"{self.origin}: expected two or more images, each with its place, got {len(self.images)} images and "
                f"{len(self.order)} places."
            )

    def load(self) -> list[Tensor]:
        """Decode the images.

        Returns:
            For each image (3, H, W) uint8.

        Raises:
            UnreadableImageError: a ValueError, an image is missing or damaged; it names the row.
        """
        try:
            return [image.load(keep_uint8=True) for image in self.images]
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{self.origin}: {error}") from error


def rankings_digest(rankings: Sequence[RankedImages]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of prompts, places and names of images, not of their pixels."""
    digest = hashlib.sha256()
    for one in rankings:
        digest.update(json.dumps([one.prompt, list(one.order), [str(image) for image in one.images]]).encode())
    return digest.hexdigest()[:16]


def read_hpdv2(path: Path) -> list[RankedImages]:
    """HPDv2's `test.json` (Wu et al. 2023, arXiv 2306.09341): a list of `prompt`, `image_path` and `rank`, 1 the best.

    Images lie in `test/` beside it, or beside it.
    """
    rows, file = _objects(path, "test.json")
    return [
        _ranked(
            place, fields, images="image_path", places=[-value for value in _numbers(fields, "rank", place)], file=file
        )
        for place, fields in rows
    ]


def read_imagereward(path: Path) -> list[RankedImages]:
    """ImageReward's `test.json` (Xu et al. 2023, arXiv 2304.05977): `prompt`, `generations` and `ranking`, 1 the best.

    Images lie in `test_images/` beside it, or beside it.
    """
    rows, file = _objects(path, "test.json")
    return [
        _ranked(
            place,
            fields,
            images="generations",
            places=[-value for value in _numbers(fields, "ranking", place)],
            file=file,
        )
        for place, fields in rows
    ]


def read_hpdv3(path: Path) -> list[RankedImages]:
    """HPDv3's `test.json` (Ma et al. 2025, arXiv 2508.03789): `prompt`, `path1`, the preferred image, and `path2`."""
    rows, file = _objects(path, "test.json")
    found = []
    for place, fields in rows:
        pair = [_text(fields, name, place) for name in ("path1", "path2")]
        found.append(_ranked(place, {**fields, "pair": pair}, images="pair", places=[1.0, 0.0], file=file))
    return found


def read_pickapic(path: Path) -> list[RankedImages]:
    """Pick-a-Pic's rows (Kirstain et al. 2023, arXiv 2305.01569): `caption`, `jpg_0`, `jpg_1`, `label_0`, `label_1`.

    A label of 0.5 is a tie. Rows with `has_label` false are left out, with a warning.

    Args:
        path: a Parquet file of the split to use, such as `test_unique`, or a folder of such files.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} has no Parquet file.")
    rows = [_checked(*item) for file in files for item in read_rows(file)]
    labelled = [(place, fields) for place, fields in rows if fields.get("has_label", True)]
    if len(labelled) < len(rows):
        logger.warning("%s: %d of %d rows have no label and are left out.", path, len(rows) - len(labelled), len(rows))
    return [_picked(place, fields) for place, fields in labelled]


def _picked(place: str, fields: Mapping[str, Any]) -> RankedImages:
    names = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    caption, first, second, *labels = (_field(fields, name, place) for name in names)
    try:
        images = tuple(ImageSource.of(value) for value in (first, second))
        order = tuple(finite_number(label, name) for label, name in zip(labels, names[3:], strict=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    return RankedImages(place, caption, images, order)


def read_genai_bench(path: Path) -> list[RankedImages]:
    """GenAI-Bench's `genai_image.json` (Li et al. 2024, arXiv 2406.13743): index to `prompt` and `models`.

    `models` maps each model to the marks that people gave its image, whose mean counts; equal means are ties. The
    image is MODEL/INDEX.jpeg beside the file.
    """
    file = _file(path, "genai_image.json")
    content = parse_json(file.read_text(encoding="utf-8"), file)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} should map indices such as '00000' to prompts and marks.")
    found = []
    for index, fields in content.items():
        place = f"{file}, {index}"
        if not isinstance(fields, dict) or not isinstance(fields.get("models"), dict):
            raise ValueError(f"{place}: expected an object with prompt and models, got {shortened(repr(fields), 80)}.")
        marks = [_numbers(fields["models"], name, place) for name in fields["models"]]
        images = [f"{name}/{index}.jpeg" for name in fields["models"]]
        places = [sum(values) / len(values) for values in marks]
        found.append(_ranked(place, {**fields, "files": images}, images="files", places=places, file=file))
    return found


def read_mmrb2(path: Path) -> list[RankedImages]:
    """MMRB2's `t2i.json` (Hu et al. 2025, arXiv 2512.16899): `pairs` of `response_a`, `response_b` and `chosen`.

    Only the task text-to-image has a text as its prompt and an image as each response, which rewards here can judge.
    """
    file = _file(path, "t2i.json")
    content = parse_json(file.read_text(encoding="utf-8"), file)
    pairs = content.get("pairs") if isinstance(content, dict) else None
    if not isinstance(pairs, list) or not pairs:
        raise ValueError(f"{file} should be an object with a list of pairs.")
    return [_mmrb2_pair(fields, f"{file}, pair {number}", file) for number, fields in enumerate(pairs, start=1)]


def _mmrb2_pair(fields: Any, place: str, file: Path) -> RankedImages:
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: expected an object, got {shortened(repr(fields), 80)}.")
    chosen = _field(fields, "chosen", place)
    if chosen not in ("A", "B"):
        raise ValueError(f"{place}: chosen should be A or B, got {chosen!r}.")
    parts = _field(fields, "prompt_content", place)
    answers = [_field(fields, name, place) for name in ("response_a", "response_b")]
    responses = [_field(answer, "response_content", place) for answer in answers]
    alone = all(_kinds(content, place) == {"image"} and len(content) == 1 for content in responses)
    if _kinds(parts, place) != {"text"} or not alone:
        raise ValueError(
            f"{place}: the prompt should be a text and each response one image. Rewards here judge the images of a "
            "text, which is MMRB2's task text-to-image (t2i.json); edits, interleaved texts and reasoning are others."
        )
    prompt = "\n".join(text for _, text in parts)
    images = [content[0][1] for content in responses]
    places = [1.0, 0.0] if chosen == "A" else [0.0, 1.0]
    return _ranked(place, {"prompt": prompt, "pair": images}, images="pair", places=places, file=file)


def _kinds(parts: Any, place: str) -> set[str]:
    if not isinstance(parts, list) or not all(isinstance(part, list) and len(part) == 2 for part in parts):
        raise ValueError(f"{place}: expected a list of pairs such as ['text', ...], got {shortened(repr(parts), 80)}.")
    return {str(kind) for kind, _ in parts}


def read_shapes(path: Path) -> list[RankedImages]:  # noqa: ARG001 (images are rendered)
    """Rendered scenes of captions and of hard negatives of them, as MJ-Bench's suite of shapes has them."""
    found = []
    for question in shapes_questions("alignment", 210):
        order = (1.0, 0.0) if question.label == 0 else (0.0, 1.0)
        found.append(RankedImages(question.origin, question.caption, question.images, order))
    return found


READERS: dict[str, Callable[[Path], list[RankedImages]]] = {
    "hpdv2": read_hpdv2,
    "hpdv3": read_hpdv3,
    "imagereward": read_imagereward,
    "pickapic": read_pickapic,
    "genai-bench": read_genai_bench,
    "mmrb2": read_mmrb2,
    "shapes": read_shapes,
}
"""Name of a benchmark -> function that reads a copy of it."""

_FOLDERS = ("", "test", "test_images")
"""Where images lie, beside the file that names them."""


def _file(path: Path, name: str) -> Path:
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}.")
    return file


def _objects(path: Path, name: str) -> tuple[list[tuple[str, Mapping[str, Any]]], Path]:
    file = _file(path, name)
    return [_checked(place, row) for place, row in read_rows(file)], file


def _checked(place: str, row: Mapping[str, Any] | RowProblem) -> tuple[str, Mapping[str, Any]]:
    if isinstance(row, RowProblem):
        raise ValueError(str(row))
    return place, row


def _ranked(place: str, fields: Mapping[str, Any], *, images: str, places: Sequence[float], file: Path) -> RankedImages:
    names = _field(fields, images, place)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{place}: {images} should be a list of paths, got {shortened(repr(names), 80)}.")
    found = tuple(ImageSource.of(name, root=_root(file.parent, name)) for name in names)
    return RankedImages(place, _text(fields, "prompt", place), found, tuple(places))


def _root(folder: Path, name: str) -> Path:
    """The folder that has an image; the first one where none has it, whose error names the path then."""
    return next((folder / part for part in _FOLDERS if (folder / part / name).is_file()), folder)


def _field(fields: Any, name: str, place: str) -> Any:
    if not isinstance(fields, Mapping) or name not in fields:
        known = ", ".join(sorted(map(str, fields))) if isinstance(fields, Mapping) else shortened(repr(fields), 80)
        raise ValueError(f"{place} has no {name!r}; it has {known}.")
    return fields[name]


def _text(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = _field(fields, name, place)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} should be a text, got {shortened(repr(value), 80)}.")
    return value


def _numbers(fields: Mapping[str, Any], name: str, place: str) -> list[float]:
    values = _field(fields, name, place)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{place}: {name} should be a list of numbers, got {shortened(repr(values), 80)}.")
    try:
        return [finite_number(value, name) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
