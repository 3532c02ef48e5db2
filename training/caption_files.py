"""Files of captioned images, and files of prompt pairs made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.durable_files import write_whole
from fk_reward.training.hard_negatives import HardNegative
from fk_reward.training.image_source import ImageSource
from fk_reward.training.preference_data import LabelledImage
from fk_reward.training.row_files import RowSource, read_rows
from fk_reward.training.row_parsing import collect, first_of
from fk_reward.training.row_values import short
from fk_reward.training.validation import digest_images, report_problems, sort_out

_IMAGE_KEYS = ("path", "image_path", "chosen_path")


def read_captions(
    source: RowSource, *, image_root: str | Path | None = None, skip_bad_rows: bool = False
) -> list[tuple[str, Path]]:
    """Read captions and the files of their images, and check the images.

    Args:
        source: as `read_rows` takes it; rows with `prompt` (of two the first, which is the chosen image's) and `path`,
            `image_path` or `chosen_path`.
        image_root: folder that relative paths are relative to; None for the folder of the file.
        skip_bad_rows: leave out bad rows with a warning, in place of an error.

    Returns:
        Caption and path of each image, none twice.

    Raises:
        FileNotFoundError: when there is no such file.
        PreferenceDataError: a ValueError, for bad rows.
    """
    rows = read_rows(source)
    root = Path(source).parent if image_root is None and isinstance(source, (str, Path)) else Path(image_root or "")
    captioned, problems = collect(rows, lambda row, origin: _captioned(row, root, origin))
    good, broken = sort_out(captioned, digest_images(captioned))
    report_problems([*problems, *broken], len(rows), skip_bad_rows=skip_bad_rows)
    return list(dict.fromkeys((item.prompt, Path(str(item.image.content))) for item in good))


def _captioned(row: Mapping[str, Any], root: Path, origin: str) -> LabelledImage:
    prompt, path = first_of(row, "prompt", "text"), first_of(row, *_IMAGE_KEYS)
    if isinstance(prompt, (list, tuple)) and prompt:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"expected a caption as prompt, got {short(prompt)}")
    image = ImageSource.of(path, root=root)
    if not isinstance(image.content, Path):  # the file of pairs names images by their paths
        raise TypeError(
            f"expected the path of an image, got {'base64' if isinstance(path, str) else type(path).__name__}"
        )
    return LabelledImage(prompt=prompt, image=image, label=True, origin=origin)


def write_prompt_pairs(out: Path, images: Sequence[Path], negatives: Sequence[Sequence[HardNegative]]) -> None:
    """Write prompt pairs in the public preference format, with paths relative to the file's folder.

    Args:
        out: a JSON file, or one of JSON lines if its name ends in .jsonl.
        images: one for each list of negatives.
        negatives: what `choose_hard_negatives` made of the captions.
    """
    rows = [
        _row(Path(os.path.relpath(image, out.parent)).as_posix(), negative)
        for image, of_image in zip(images, negatives, strict=True)
        for negative in of_image
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = lines if out.suffix == ".jsonl" else json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_whole(out, text)


def _row(image: str, negative: HardNegative) -> dict[str, Any]:
    prompts = [negative.caption, negative.altered]
    about = {"kind": negative.kind, "change": negative.change}
    return {"prompt": prompts, "chosen_path": image, "reject_path": image} | about
