"""Pairs of predictions, in the order in which a judge of a noise band learns from them: from clean to noisy.

Letters of shapes: P prompts, S seeds of a prompt, N pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fk_reward.rewards.noise_bands import NoiseBand, prompt_at_level
from fk_reward.training.predictions import FINISHED, PredictionRecords
from fk_reward.training.preference_data import PreferencePair

MAX_VALIDATION_PAIRS = 2000


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How pairs are drawn.

    Attributes:
        band: noise levels that are judged.
        teacher: name of the reward whose finished scores order a pair.
        num_pairs: N, of the whole training.
        ramp: share of the training, from its beginning, in which the highest level rises from 0 to the band's.
        clean_fraction: share of pairs of finished images, all the way; 1 for these alone, which is a control.
        min_gap: smallest gap of finished scores, in their spread within a prompt; ties are never drawn.
        level_in_prompt: whether the noise level is written before the prompt.
        seed: of all that is drawn.

    Raises:
        ValueError: for shares outside of [0, 1], a negative gap or no pairs.
    """

    band: NoiseBand
    teacher: str
    num_pairs: int
    ramp: float = 0.5
    clean_fraction: float = 0.25
    min_gap: float = 0.0
    level_in_prompt: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ramp", "clean_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}.")
        if not self.min_gap >= 0:
            raise ValueError(f"min_gap must not be negative, got {self.min_gap}.")
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, got {self.num_pairs}.")

    def levels(self, records: PredictionRecords) -> tuple[float, ...]:
        """The recorded levels in the band.

        Raises:
            ValueError: where there is none.
        """
        found = tuple(level for level in records.levels if self.band.holds(level))
        if not found:
            raise ValueError(
                f"{records.folder} has no predictions in the noise band [{self.band.low}, {self.band.high}): it has "
                f"those of {', '.join(f'{level:.3f}' for level in records.levels)}."
            )
        return found


@dataclass(frozen=True)
class _Source:
    """A recording, with what can be drawn of it: prompt's place -> (n, 2) seeds, the better one first, and gaps."""

    records: PredictionRecords
    eligible: dict[int, tuple[np.ndarray, np.ndarray]]
    band_levels: tuple[float, ...]


def held_out(prompts: Sequence[str], *, fraction: float, seed: int) -> set[str]:
    """The texts that are for validation: a share of the distinct ones, chosen by a hash.

    Args:
        prompts: texts, which may repeat.
        fraction: in [0, 1); at least one text is left for each side where it is above 0.
        seed: another seed, another choice.

    Raises:
        ValueError: for a single text that should be on both sides.

    Example:
        >>> len(held_out([f"prompt {i}" for i in range(40)], fraction=0.1, seed=0))
        4
    """
    if fraction == 0:
        return set()
    texts = sorted(set(prompts), key=lambda text: (hashlib.sha256(f"{seed} {text}".encode()).hexdigest(), text))
    if len(texts) < 2:
        raise ValueError("One prompt cannot be trained on and held out: record more, or set validation_fraction to 0.")
    return set(texts[: min(len(texts) - 1, max(1, round(fraction * len(texts))))])


def training_pairs(
    recordings: Sequence[PredictionRecords], curriculum: Curriculum, *, without: Collection[str] = ()
) -> list[PreferencePair]:
    """N pairs in the order of the training.

    Each is of one prompt of one recording, drawn alike from all prompts, of one noise level and two seeds; the one
    whose finished image the teacher likes more is chosen, and the gap, in the spread of the teacher within a prompt, is
    the margin. While the level rises (`ramp`), all recorded levels below it are drawn from; then those of the band.

    Args:
        recordings: what is drawn from.
        curriculum: how.
        without: texts that are held out.

    Raises:
        ValueError: for a recording without a level of the band, or no pair that the teacher can tell apart.
    """
    rng = np.random.default_rng(curriculum.seed)
    sources = _sources(recordings, curriculum, keep=lambda text: text not in without)
    places = [(source, place) for source in sources for place in source.eligible]
    pairs = []
    for number in range(curriculum.num_pairs):
        source, place = places[int(rng.integers(len(places)))]
        seeds, gaps = source.eligible[place]
        level = _level(source, curriculum, (number + 0.5) / curriculum.num_pairs, rng)
        chosen = rng.integers(len(seeds))
        pairs.append(_pair(source.records, curriculum, place, seeds[chosen], gaps[chosen], level))
    return pairs


def validation_pairs(
    recordings: Sequence[PredictionRecords], curriculum: Curriculum, *, only: Collection[str]
) -> list[PreferencePair]:
    """Pairs of held-out prompts at the levels of the band: all of them, or as many as `MAX_VALIDATION_PAIRS`.

    Args:
        recordings: what is drawn from.
        curriculum: band and teacher.
        only: texts that are held out.

    Raises:
        ValueError: as `training_pairs`.
    """
    found = [
        (source.records, place, pair, gap, level)
        for source in _sources(recordings, curriculum, keep=lambda text: text in only)
        for place, (seeds, gaps) in source.eligible.items()
        for pair, gap in zip(seeds, gaps, strict=True)
        for level in source.band_levels
    ]
    chosen = np.random.default_rng(curriculum.seed).permutation(len(found))[:MAX_VALIDATION_PAIRS]
    picked = (found[index] for index in sorted(chosen.tolist()))
    return [_pair(records, curriculum, place, pair, gap, level) for records, place, pair, gap, level in picked]


def _sources(
    recordings: Sequence[PredictionRecords], curriculum: Curriculum, *, keep: Callable[[str], bool]
) -> list[_Source]:
    sources = []
    for records in recordings:
        levels = curriculum.levels(records)
        scores = records.of(curriculum.teacher) / records.spread(curriculum.teacher)
        places = [place for place, text in enumerate(records.prompts) if keep(text)]
        pairs = {place: _eligible(scores[place], curriculum.min_gap) for place in places}
        sources.append(_Source(records, {place: found for place, found in pairs.items() if len(found[0])}, levels))
    if not any(source.eligible for source in sources):
        raise ValueError(
            f"No pair of images of one prompt differs by more than min_gap={curriculum.min_gap} by the teacher "
            f"{curriculum.teacher!r}: record more prompts or seeds, or lower it."
        )
    return sources


def _eligible(scores: np.ndarray, min_gap: float) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) seeds of the pairs that differ, the better one first, and their gaps (n,)."""
    gaps = scores[:, None] - scores[None, :]
    better, worse = np.nonzero((gaps > 0) & (gaps >= min_gap))
    return np.stack([better, worse], axis=1), gaps[better, worse]


def _level(source: _Source, curriculum: Curriculum, progress: float, rng: np.random.Generator) -> float:
    """The noise level of a pair at this share of the training, in [0, 1]."""
    if rng.random() < curriculum.clean_fraction:
        return FINISHED
    levels: Sequence[float] = source.band_levels
    if progress < curriculum.ramp:
        ceiling = curriculum.band.high * progress / curriculum.ramp
        levels = [level for level in (*source.records.levels, FINISHED) if level <= ceiling]
    return levels[int(rng.integers(len(levels)))]


def _pair(
    records: PredictionRecords,
    curriculum: Curriculum,
    place: int,
    seeds: np.ndarray,
    gap: float,
    level: float,
) -> PreferencePair:
    prompt = records.prompts[place]
    return PreferencePair(
        prompt=prompt_at_level(prompt, level) if curriculum.level_in_prompt else prompt,
        chosen=records.source(place, int(seeds[0]), level),
        rejected=records.source(place, int(seeds[1]), level),
        margin=float(gap),
        origin=f"{records.folder}, prompt {place}, level {level:.3f}",
    )
