"""Recorded predictions: what images were predicted to become, and the scores of what became of them.

`fk-reward record --keep-predictions` writes such a folder; a judge of a noise band is trained on pairs of predictions
of one prompt at one level, in the order of their finished images.

Letters of shapes: P prompts, S seeds of a prompt, L noise levels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fk_reward.documents import parse_json
from fk_reward.durable_files import write_whole
from fk_reward.text import did_you_mean, require_text
from fk_reward.training.image_source import ImageSource
from fk_reward.training.rows import finite_number, read_rows

INDEX_FILE = "predictions.json"
"""Written when all images of the folder are there."""
IMAGE_FOLDER = "images"
_FORMAT = "fk_reward.PredictionRecords"
_FIELDS = {"format", "prompts", "levels", "scores", "image_format", "settings"}
FINISHED = 0.0
"""The noise level of finished images."""

Floats = NDArray[np.float64]


def image_name(place: int, seed: int, level: float, image_format: str) -> str:
    """Where the image of a prompt, a seed and a noise level is, relative to the folder.

    Example:
        >>> image_name(3, 12, 0.5, "png")
        'images/00003/0012-0.5000.png'
    """
    return f"{IMAGE_FOLDER}/{place:05d}/{seed:04d}-{level:.4f}.{image_format}"


@dataclass(frozen=True, eq=False)
class PredictionRecords:
    """A folder of predictions with the scores of their finished images.

    Attributes:
        folder: where the images are.
        prompts: the P texts.
        levels: the L noise levels of the predictions, descending: in the order of a trajectory.
        scores: name of a reward -> (P, S) float64, its scores of the finished images.
        image_format: ending of the images' names.
        settings: what the trajectories depend on, as JSON.

    Raises:
        ValueError: without a prompt, a level or a score, and for shapes or levels that do not fit.

    Example:
        >>> records = PredictionRecords(Path("x"), ("a star",), (0.8, 0.4), {"clipscore": np.zeros((1, 2))})
        >>> str(records.image(0, 1, 0.8))
        'x/images/00000/0001-0.8000.png'
    """

    folder: Path
    prompts: tuple[str, ...]
    levels: tuple[float, ...]
    scores: Mapping[str, Floats]
    image_format: str = "png"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_text(list(self.prompts), "prompts")
        if not self.prompts or not self.scores:
            raise ValueError("Recorded predictions should have at least one prompt and the scores of one reward.")
        if list(self.levels) != sorted(set(self.levels), reverse=True) or not all(0 < one <= 1 for one in self.levels):
            raise ValueError(f"The noise levels should be in (0, 1], descending, each once, got {list(self.levels)}.")
        shapes = {name: np.shape(values) for name, values in self.scores.items()}
        if len(set(shapes.values())) > 1 or next(iter(shapes.values()))[:1] != (len(self.prompts),):
            raise ValueError(f"Scores should be ({len(self.prompts)}, seeds), of all rewards alike, got {shapes}.")
        for name, values in self.scores.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name} has scores that are not finite: leave these prompts out.")

    @property
    def num_seeds(self) -> int:
        """S."""
        return int(np.shape(next(iter(self.scores.values())))[1])

    def of(self, name: str) -> Floats:
        """(P, S), the finished scores by one reward.

        Raises:
            ValueError: for one that did not score them; it lists those that did.
        """
        if name not in self.scores:
            hint = did_you_mean(name, self.scores, limit=1)
            raise ValueError(f"{self.folder} holds no scores by {name!r}.{hint} It has {', '.join(self.scores)}.")
        return np.asarray(self.scores[name], dtype=np.float64)

    def image(self, place: int, seed: int, level: float) -> Path:
        """The file of a prediction; at level 0 that of the finished image."""
        return self.folder / image_name(place, seed, level, self.image_format)

    def source(self, place: int, seed: int, level: float) -> ImageSource:
        """The same, to be read when it is needed."""
        return ImageSource(self.image(place, seed, level))

    def images(self, place: int, level: float) -> list[Tensor]:
        """S images (3, H, W) in [0, 1]: the predictions of a prompt; at level 0 its finished images."""
        return [self.source(place, seed, level).load() for seed in range(self.num_seeds)]

    def spread(self, name: str) -> float:
        """Standard deviation of a reward's finished scores within a prompt, pooled over prompts.

        Raises:
            ValueError: for a single seed, or scores that do not differ.
        """
        values = self.of(name)
        if values.shape[1] < 2:
            raise ValueError(f"{self.folder} has one image of each prompt: nothing to compare. Record several seeds.")
        spread = float(np.sqrt(values.var(axis=1, ddof=1).mean()))
        if spread == 0:
            raise ValueError(f"All images of a prompt have the same score by {name!r} in {self.folder}.")
        return spread

    def check_images(self) -> None:
        """Look for the files.

        Raises:
            FileNotFoundError: some are missing; it names one and counts them.
        """
        asked = (
            self.image(place, seed, level)
            for place in range(len(self.prompts))
            for seed in range(self.num_seeds)
            for level in (*self.levels, FINISHED)
        )
        if missing := [path for path in asked if not path.is_file()]:
            raise FileNotFoundError(f"{missing[0]} is missing, and {len(missing) - 1} more images of this folder.")

    def save(self) -> Path:
        """Write `predictions.json`, which makes a folder of images complete."""
        content = {
            "format": _FORMAT,
            "prompts": self.prompts,
            "levels": self.levels,
            "scores": {name: np.asarray(values).tolist() for name, values in self.scores.items()},
            "image_format": self.image_format,
            "settings": self.settings,
        }
        return write_whole(self.folder / INDEX_FILE, json.dumps(content, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> PredictionRecords:
        """Read a folder.

        Raises:
            FileNotFoundError: it is none, or a recording that is not finished, or lacks images.
            ValueError: its `predictions.json` is damaged.
        """
        path = Path(folder) / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {INDEX_FILE}: expected a finished folder of fk-reward record --keep-predictions."
            )
        content = parse_json(path.read_text(encoding="utf-8"), path)
        if not isinstance(content, dict) or set(content) != _FIELDS or content["format"] != _FORMAT:
            raise ValueError(f"{path} is no index of recorded predictions.")
        try:
            found = cls(
                Path(folder),
                tuple(content["prompts"]),
                tuple(map(float, content["levels"])),
                {name: np.array(values, dtype=np.float64) for name, values in content["scores"].items()},
                str(content["image_format"]),
                content["settings"],
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        found.check_images()
        return found


def is_recording(path: str | Path) -> bool:
    """Whether a path, or each of several with commas between them, is a folder of recorded predictions."""
    return all((Path(one) / INDEX_FILE).is_file() for one in split_paths(path))


def split_paths(paths: str | Path) -> list[str]:
    """The paths in a text with commas between them.

    Example:
        >>> split_paths("runs/ddim, runs/dpm")
        ['runs/ddim', 'runs/dpm']
    """
    return [one.strip() for one in str(paths).split(",") if one.strip()]


def load_recordings(paths: str | Path) -> list[PredictionRecords]:
    """Read the folders of recorded predictions that a text names, with commas between them.

    Raises:
        FileNotFoundError: one is none.
        ValueError: none is named, or one is damaged.
    """
    folders = split_paths(paths)
    if not folders:
        raise ValueError("Name at least one folder of recorded predictions.")
    return [PredictionRecords.load(folder) for folder in folders]


def with_scores(records: PredictionRecords, file: str | Path, name: str) -> PredictionRecords:
    """The records with scores of finished images from a file, such as those of people.

    Args:
        records: whose finished images were judged: those in its folder at level 0.
        file: rows with `place` (0-based number of the prompt), `seed` and `score`, in any format that `read_rows`
            knows; one for every finished image.
        name: of the teacher.

    Raises:
        ValueError: for a row that cannot be used, and for images without a score, or with two.
    """
    values = np.full((len(records.prompts), records.num_seeds), np.nan)
    for origin, row in read_rows(str(file)):
        if not isinstance(row, Mapping) or not {"place", "seed", "score"} <= set(row):
            raise ValueError(f"{origin}: expected place, seed and score, got {row}.")
        place, seed = (int(finite_number(row[key], key)) for key in ("place", "seed"))
        if not (0 <= place < values.shape[0] and 0 <= seed < values.shape[1]) or not np.isnan(values[place, seed]):
            raise ValueError(f"{origin}: place {place}, seed {seed} is not in {records.folder}, or is there twice.")
        values[place, seed] = finite_number(row["score"], "score")
    if np.isnan(values).any():
        raise ValueError(f"{file} has no score of {int(np.isnan(values).sum())} of {values.size} finished images.")
    scores = {**records.scores, name: values}
    return PredictionRecords(
        records.folder, records.prompts, records.levels, scores, records.image_format, records.settings
    )


def nearest_steps(levels: Sequence[float], wanted: Sequence[float]) -> dict[int, float]:
    """The steps of a run whose noise levels are nearest to those that are wanted.

    Args:
        levels: of each step.
        wanted: in (0, 1].

    Returns:
        Step -> its level, in the order of time.

    Raises:
        ValueError: for a level outside of (0, 1], and two that have the same step.

    Example:
        >>> nearest_steps([0.99, 0.8, 0.5, 0.1], [0.52, 0.9])
        {0: 0.99, 2: 0.5}
    """
    found: dict[int, float] = {}
    for level in sorted(wanted, reverse=True):
        if not 0 < level <= 1:
            raise ValueError(f"Noise levels to keep are in (0, 1], got {level}; finished images are kept anyway.")
        step = min(range(len(levels)), key=lambda step: abs(levels[step] - level))
        if step in found:
            raise ValueError(
                f"Two of the noise levels {list(wanted)} are nearest to step {step} of {len(levels)}, which has "
                f"{levels[step]:.3f}: keep fewer, or draw with more steps."
            )
        found[step] = levels[step]
    return dict(sorted(found.items()))
