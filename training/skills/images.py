"""Training images of a skill, drawn by the model itself: several of each prompt, scored by a reward."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from fk_reward.durable_files import read_json, write_whole
from fk_reward.image_files import read_image
from fk_reward.output_folder import hold_folder_together
from fk_reward.value_checks import real_number, whole_number

SETTINGS_FILE = "drawing.json"
METADATA_FILE = "metadata.jsonl"
"""One row an image, with `file_name` and `text`: `datasets.load_dataset("imagefolder", data_dir=folder)` reads it."""

_REMEDY = "Delete it and start the same command again."
KEEP = ("best", "all", "first")

Scores = Callable[[Tensor, list[str]], Tensor]
"""A reward: images (B, 3, H, W) float32 in [0, 1] and B prompts to (B,) scores."""


@dataclass(frozen=True)
class DrawnImage:
    """An image that may be trained on.

    Attributes:
        path: of the file.
        prompt: what was asked for.
        reward: its score; None where it was drawn without a reward.
    """

    path: Path
    prompt: str
    reward: float | None

    def load(self) -> Image.Image:
        """The image, RGB."""
        return read_image(self.path)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How images are drawn.

    Attributes:
        num_candidates: images of each prompt.
        num_inference_steps: of the pipeline; its own default if not given.
        guidance_scale: of the pipeline; its own default if not given.
        seed: of the images. Each has its own generator, made from seed, number of the prompt and number of the image,
            so that neither batches nor restarts change it.
        batch_size: images at once; does not change what is drawn but in the last bits.

    Raises:
        TypeError: for a value of a wrong type.
        ValueError: for a value out of range.
    """

    num_candidates: int = 4
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        whole_number("num_candidates", self.num_candidates, minimum=1)
        whole_number("batch_size", self.batch_size, minimum=1)
        whole_number("seed", self.seed, minimum=0)
        if self.num_inference_steps is not None:
            whole_number("num_inference_steps", self.num_inference_steps, minimum=1)
        if self.guidance_scale is not None:
            real_number("guidance_scale", self.guidance_scale, low=0.0)

    def call_arguments(self) -> dict[str, Any]:
        """Keywords of the pipeline."""
        given = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        return {name: value for name, value in given.items() if value is not None}


def draw_images(
    pipe: Any,
    reward: Scores | None,
    prompts: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    drawing: Drawing | None = None,
    names: tuple[str, str] = ("", ""),
) -> Iterator[int]:
    """Draw all candidates of all prompts and score them, a few prompts at a time.

    Every candidate is kept: which of them are trained on is decided by `read_images`, so that chosen and not chosen
    images can be compared without drawing again. A prompt that is done is not drawn again after a restart. Processes of
    `accelerate launch` share the prompts.

    Args:
        pipe: a text-to-image pipeline of Diffusers, in its place.
        reward: any reward, or None for none.
        prompts: of the skill.
        folder: for the images, `metadata.jsonl` and what is needed to go on.
        drawing: how; the defaults if not given.
        names: of model and reward, for the record; other ones than those of an earlier start are refused.

    Yields:
        Number of prompts that this process has done, after each batch.

    Raises:
        FolderInUseError: an OSError, when another run writes there.
        ValueError: when the folder holds images of other prompts or settings, or the reward gives no finite score.
    """
    drawing, folder, state = drawing or Drawing(), Path(folder), PartialState()
    if not prompts:
        raise ValueError("There is no prompt to draw.")
    with hold_folder_together(folder, state):
        _same_settings(folder, prompts, drawing, names, write=state.is_main_process)
        own = [i for i in range(len(prompts)) if i % state.num_processes == state.process_index]
        open_ones = [i for i in own if not _record_file(folder, i).exists()]
        done, size = len(own) - len(open_ones), max(1, drawing.batch_size // drawing.num_candidates)
        yield done
        for start in range(0, len(open_ones), size):
            batch = open_ones[start : start + size]
            _draw(pipe, reward, [(i, prompts[i]) for i in batch], folder, drawing)
            done += len(batch)
            yield done
        state.wait_for_everyone()
        if state.is_main_process:
            _write_metadata(folder, len(prompts))


def read_images(
    folder: str | os.PathLike[str], *, keep: str = "best", num_kept: int = 1, min_reward: float | None = None
) -> list[DrawnImage]:
    """Choose the images that are trained on.

    Args:
        folder: that `draw_images` has filled, or any folder with a `metadata.jsonl` of `file_name` and `text`.
        keep: "best": of each prompt the images with the highest rewards; "all", as SELMA does; "first": the first
            images of each prompt, which no reward has chosen, as many as "best" keeps.
        num_kept: images of each prompt that "best" and "first" keep, if there are so many. One alone is soon learnt by
            heart where there are few prompts.
        min_reward: leave out images below it, too.

    Raises:
        FileNotFoundError: when `metadata.jsonl` is missing: the drawing has not ended.
        ValueError: for another `keep`, for "best" or `min_reward` without rewards, or when nothing is left.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}.")
    if whole_number("num_kept", num_kept, minimum=1) > 1 and keep == "all":
        raise ValueError(f"num_kept={num_kept} goes with keep='best' or 'first': 'all' keeps all.")
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: draw the images, or go on with a drawing that has not ended.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    images = [DrawnImage(Path(folder, row["file_name"]), row["text"], row.get("reward")) for row in rows]
    if (keep == "best" or min_reward is not None) and any(image.reward is None for image in images):
        raise ValueError(f"{folder} was drawn without a reward, by which nothing can be chosen: use keep='all'.")
    groups: dict[Any, list[DrawnImage]] = {}
    for row, image in zip(rows, images, strict=True):
        groups.setdefault(row.get("index", row["text"]), []).append(image)
    kept = [image for group in groups.values() for image in _kept(group, keep, num_kept)]
    kept = [image for image in kept if min_reward is None or float(image.reward or 0.0) >= min_reward]
    if not kept:
        raise ValueError(f"No image of {folder} is left (keep={keep!r}, min_reward={min_reward}).")
    return kept


def _kept(group: list[DrawnImage], keep: str, number: int) -> list[DrawnImage]:
    if keep == "best":
        ranked = sorted(range(len(group)), key=lambda place: -float(group[place].reward or 0.0))
        return [group[place] for place in sorted(ranked[:number])]
    return group if keep == "all" else group[:number]


def _draw(pipe: Any, reward: Scores | None, batch: Sequence[tuple[int, str]], folder: Path, drawing: Drawing) -> None:
    """Draw and score all candidates of some prompts, and write them."""
    asked = [(i, number, text) for i, text in batch for number in range(drawing.num_candidates)]
    parts = [asked[start : start + drawing.batch_size] for start in range(0, len(asked), drawing.batch_size)]
    images = torch.cat([_pixels(pipe, part, drawing) for part in parts])
    scores = None if reward is None else _scores(reward, images, [text for _, _, text in asked])
    for place, (i, text) in enumerate(batch):
        own = slice(place * drawing.num_candidates, (place + 1) * drawing.num_candidates)
        rows = []
        for number, pixels in enumerate(images[own]):
            file = f"images/{i:05d}-{number:02d}.png"
            _save_png(folder / file, pixels)
            score = None if scores is None else scores[own][number].item()
            rows.append({"file_name": file, "text": text, "index": i, "candidate": number, "reward": score})
        write_whole(_record_file(folder, i), json.dumps(rows) + "\n")  # last: it marks the prompt as done


@torch.no_grad()
def _pixels(pipe: Any, part: Sequence[tuple[int, int, str]], drawing: Drawing) -> Tensor:
    generators = [torch.Generator().manual_seed(_image_seed(drawing.seed, index, number)) for index, number, _ in part]
    texts = [text for _, _, text in part]
    images = pipe(prompt=texts, generator=generators, output_type="pt", **drawing.call_arguments()).images
    return torch.as_tensor(images).float().cpu()


def _image_seed(seed: int, index: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {number}".encode()).digest()[:7], "big")


def _scores(reward: Scores, images: Tensor, texts: list[str]) -> Tensor:
    with torch.no_grad():
        scores = torch.as_tensor(reward(images, texts)).detach().float().cpu()
    if scores.shape != (len(texts),) or not scores.isfinite().all():
        raise ValueError(f"The reward must give {len(texts)} finite scores, got {scores.tolist()}.")
    return scores


def _save_png(path: Path, pixels: Tensor) -> None:
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    write_whole(path, lambda file: Image.fromarray(array).save(file, format="PNG"))


def _record_file(folder: Path, index: int) -> Path:
    return folder / "prompts" / f"{index:05d}.json"


def _same_settings(
    folder: Path, prompts: Sequence[str], drawing: Drawing, names: tuple[str, str], *, write: bool
) -> None:
    """Refuse to mix two drawings in one folder."""
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    settings = {"prompts": digest, "model": names[0], "reward": names[1], **asdict(drawing)}
    settings.pop("batch_size")
    path = folder / SETTINGS_FILE
    if path.exists():
        known = read_json(path, remedy=_REMEDY)
        if other := sorted(name for name, value in settings.items() if known.get(name) != value):
            raise ValueError(f"{folder} holds images of other {', '.join(other)}: name another folder.")
    elif write:
        write_whole(path, json.dumps(settings, indent=1) + "\n")


def _write_metadata(folder: Path, num_prompts: int) -> None:
    records = [json.loads(_record_file(folder, i).read_text(encoding="utf-8")) for i in range(num_prompts)]
    write_whole(folder / METADATA_FILE, "".join(json.dumps(row) + "\n" for rows in records for row in rows))
