"""Makes the preference data on which the reward of the shapes world is trained and measured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import numpy as np
from alignment_pairs import caption_pairs, prediction_pairs, sample_pairs, scene_pairs
from fidelity_pairs import fidelity_pairs
from preference_files import Labelled, Pair, write_labelled, write_pairs
from prompt_sides import SIDES
from safety_labels import safety_labels, unasked_sign_pairs
from sample_images import Draw, load_draws, on_side

ALIGNMENT = {"captions": 3500, "scenes": 2000, "samples": 3500, "predictions": 3000}
"""Training pairs by part; validation has 600 in the same proportions, and each part a held-out file of 600."""

DRAWN_PARTS = ("samples", "predictions")

FINISHED = {"captions": 3500, "scenes": 2000, "samples": 6500}
"""The same number without a prediction, whose share the finished images of the same draws take."""

FIDELITY = {"train": 5000, "validation": 500, "heldout": 600}
SAFETY = {"train": 5000, "validation": 500, "heldout": 600}
UNASKED_SIGNS = 400


@dataclass
class Maker:
    """Writes files one by one; each has a generator of its own, so that one does not depend on the others."""

    draws: dict[str, list[Draw]]
    early: dict[str, list[Draw]]
    folder: Path
    seed: int
    scale: float
    drawn: float = 1.0
    fidelity: float = 1.0
    finished: bool = False
    num_files: int = field(default=0, init=False)

    def size(self, number: float) -> int:
        """A number of rows at this scale."""
        return max(1, round(number * self.scale))

    def write(self, name: str, make: Callable[[np.random.Generator], Sequence[Pair | Labelled]]) -> None:
        """Makes one file and prints what is in it."""
        start, rng = time.perf_counter(), np.random.default_rng((self.seed, self.num_files))
        self.num_files += 1
        rows = make(rng)
        if not rows:
            raise ValueError(f"Nothing to write into {name}: are there enough --samples of that side?")
        path = self.folder / f"{name}.parquet"
        write = write_pairs if isinstance(rows[0], Pair) else write_labelled
        write(rows, path)
        parts = Counter(row.kind.split("/")[0] for row in rows)
        counts = ", ".join(f"{count} {part}" for part, count in parts.items())
        print(f"{name}: {len(rows)} rows ({counts}), {time.perf_counter() - start:.0f} s", flush=True)

    def alignment(self, part: str, number: int, side: str, rng: np.random.Generator) -> list[Pair]:
        """Pairs of one part."""
        if part in {"captions", "scenes"}:
            make = caption_pairs if part == "captions" else scene_pairs
            return make(number, side, rng, degrade=side != "heldout" and not self.finished)
        if part == "samples":
            return sample_pairs(number, side, self.draws[side], rng)
        return prediction_pairs(number, self.draws[side], rng)

    def all_alignment(self, numbers: Mapping[str, float], side: str, rng: np.random.Generator) -> list[Pair]:
        """Pairs of all parts, as many of each as `numbers` says."""
        sizes = {part: self.size(number) for part, number in numbers.items()}
        return [pair for part, size in sizes.items() for pair in self.alignment(part, size, side, rng)]

    def write_alignment(self) -> None:
        """Training and validation of all parts together, a held-out file for each."""
        parts = FINISHED if self.finished else ALIGNMENT
        training = {part: n * (self.drawn if part in DRAWN_PARTS else 1) for part, n in parts.items()}
        validation = {part: n * 600 / sum(parts.values()) for part, n in parts.items()}
        self.write("alignment/train", lambda rng: self.all_alignment(training, "train", rng))
        self.write("alignment/validation", lambda rng: self.all_alignment(validation, "validation", rng))
        for part in ALIGNMENT:
            self.write(
                f"alignment/heldout-{part}",
                lambda rng, part=part: self.alignment(part, self.size(600), "heldout", rng),
            )

    def write_fidelity(self, side: str) -> None:
        """Fidelity pairs of one side."""
        draws, early = self.draws[side], self.early[side]
        if not early:
            print(f"fidelity/{side}: no images of an early model (--early-samples), the other kinds take their share")
        number = self.size(FIDELITY[side] * (self.fidelity if side == "train" else 1))
        self.write(f"fidelity/{side}", lambda rng: fidelity_pairs(number, side, draws, early, rng))

    def write_safety(self, side: str) -> None:
        """Labelled images of one side."""
        number = self.size(SAFETY[side])
        self.write(f"safety/{side}", lambda rng: safety_labels(number, side, self.draws[side], rng))


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    samples: list[Path],
    early_samples: list[Path] | None = None,
    output_dir: Path = Path("runs/preferences"),
    seed: int = 0,
    scale: float = 1.0,
    drawn: float = 1.0,
    fidelity: float = 1.0,
    finished: bool = False,
) -> None:
    """Writes Parquet files for three dimensions: alignment, fidelity and safety.

    Args:
        samples: Files of sample_images.py, of training and held-out prompts.
        early_samples: The same, of a model that hardly trained.
        output_dir: Where to write.
        seed: Of all files.
        scale: Of all numbers of rows.
        drawn: Times as many training pairs of drawn images, for alignment.
        fidelity: Times as many training pairs for fidelity.
        finished: Whether alignment is learnt from finished images alone, as published rewards are: no predictions, and
            no scenes that look like one.
    """
    start = time.perf_counter()
    draws, early = load_draws(samples), load_draws(early_samples or [])
    by_side = [{side: on_side(found, side) for side in SIDES} for found in (draws, early)]
    sizes = {"scale": scale, "drawn": drawn, "fidelity": fidelity}
    maker = Maker(*by_side, folder=output_dir, seed=seed, finished=finished, **sizes)
    maker.write_alignment()
    for side in SIDES:
        maker.write_fidelity(side)
        maker.write_safety(side)
    signs = maker.size(UNASKED_SIGNS)
    maker.write("safety/heldout-pairs", lambda rng: unasked_sign_pairs(signs, by_side[0]["heldout"], rng))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cyclopts.run(main)
