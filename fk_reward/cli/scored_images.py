"""Which images `fk-reward score` is asked about, and with which prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fk_reward.cli.prompt_files import read_table
from fk_reward.documents import parse_json
from fk_reward.image_files import check_image
from fk_reward.text import require_text

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
"""Ends of the files that are taken from a folder; any file may be named on its own."""
TABLES = (".csv", ".jsonl")
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class ScoredImage:
    """An image and its prompt.

    Attributes:
        path: of the image.
        prompt: "" where it is not yet known.
        columns: what else a table says of it.
    """

    path: Path
    prompt: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


def find_images(sources: Sequence[Path], prompts: Sequence[str]) -> list[ScoredImage]:
    """The images of files, folders and tables in their order, each with its prompt.

    Args:
        sources: as typed.
        prompts: as typed: none, one for all images, or one for each.

    Raises:
        ValueError: a folder without images, an unreadable table, another number of prompts than of images, or an image
            without a prompt.
    """
    found = [image for source in sources for image in _images_of(source)]
    for image in found:
        check_image(image.path)
    if prompts:
        if len(prompts) not in (1, len(found)):
            raise ValueError(
                "Give --prompt once for all images or once for each: got "
                f"{len(prompts)} prompts for {len(found)} images."
            )
        require_text(prompts, "--prompt")
        texts = list(prompts) * (len(found) if len(prompts) == 1 else 1)
        return [replace(image, prompt=text) for image, text in zip(found, texts, strict=True)]
    for image in found:
        if not image.prompt:
            raise ValueError(
                f"{image.path} has no prompt. Add --prompt (once for all images or once for each), name a table with "
                f"the columns image and prompt, or put the prompt into {image.path.with_suffix('.txt').name} beside it."
            )
    require_text([image.prompt for image in found], "the prompts")
    return found


def _images_of(source: Path) -> Iterable[ScoredImage]:
    if source.is_dir():
        return _in_folder(source)
    if source.suffix.lower() in TABLES:
        return _in_table(source)
    return [ScoredImage(source, _prompt_beside(source))]


def _in_folder(folder: Path) -> list[ScoredImage]:
    # lineage plots of `fk-reward generate` are no results: its result.json says which files are
    known = _prompts_of_results(folder)
    if known:
        return [ScoredImage(folder / name, prompt) for name, prompt in known.items()]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGES)}).")
    return [ScoredImage(path, _prompt_beside(path)) for path in paths]


def _prompts_of_results(folder: Path) -> dict[str, str]:
    """Image -> prompt, of a folder that `fk-reward generate` wrote; nothing for others."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return {name: result["prompt"] for result in results for name in result["images"]}
    except (ValueError, KeyError, TypeError):  # of another program
        return {}


def _prompt_beside(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""


def _in_table(path: Path) -> list[ScoredImage]:
    """Images of a table; relative paths are those beside it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    rows = read_table(text, str(path), column="image") if path.suffix.lower() == ".csv" else _json_rows(text, path)
    images = []
    for line, row in rows:
        image = row.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(f"{path}, line {line}: no 'image'; it has {', '.join(row) or 'nothing'}.")
        others = {key: value for key, value in row.items() if key not in ("image", "prompt", "reward")}
        prompt = row.get("prompt") or _prompt_beside(path.parent / image)
        images.append(ScoredImage(path.parent / image, str(prompt), others))
    if not images:
        raise ValueError(f"{path} names no images.")
    return images


def _json_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object with image and prompt.")
            rows.append((number, row))
    return rows
