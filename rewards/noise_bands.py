"""Noise bands: another judge for predictions than for finished images, chosen by how much noise is in the sample.

Along a trajectory x_t = alpha x_0 + sigma noise, a reward is asked about the predicted clean sample, which is blurred
the more, the noisier x_t is. The noise level is sigma / sqrt(alpha² + sigma²), in [0, 1], whatever the family: 0 of a
finished image, 1 of pure noise. `Reward.at_noise(level)` is the judge at a level.

Letters of shapes: B images, P prompts, S images of a prompt.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fk_reward.documents import parse_json
from fk_reward.durable_files import write_whole
from fk_reward.rewards.base import Reward, RewardCard, noise_level_in_range
from fk_reward.rewards.inputs import Images

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

BAND_FILE = "noise_band.json"
"""Beside the files of a reward whose own configuration has no place for a band."""


@dataclass(frozen=True, order=True)
class NoiseBand:
    """An interval of noise levels, [low, high); one that ends at 1 holds pure noise, too.

    Attributes:
        low: smallest level, in [0, 1). Finished images, level 0, belong to no band, whatever this is.
        high: first level that is above it, in (low, 1].
        name: what the band is called, after the "@" of its adapter.

    Raises:
        TypeError: for a bound that is no number.
        ValueError: for an empty interval, or one that leaves [0, 1].

    Example:
        >>> band = NoiseBand(0.4, 0.6, "0.5")
        >>> [band.holds(level) for level in (0.0, 0.4, 0.6)]
        [False, True, False]
    """

    low: float
    high: float
    name: str = ""

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                raise TypeError(f"A noise band is [low, high) in numbers, got {bound!r}.")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"A noise band should be 0 <= low < high <= 1, got [{self.low}, {self.high}).")

    def holds(self, level: float) -> bool:
        """Whether a level lies in it; 0 lies in none."""
        return 0 < level and self.low <= level and (level < self.high or level == self.high == 1)


def find_band(bands: Sequence[NoiseBand], level: float) -> NoiseBand | None:
    """The band of a level; None where it lies in none, and the plain judge answers.

    Raises:
        ValueError: for a level outside of [0, 1].

    Example:
        >>> find_band([NoiseBand(0.4, 0.6), NoiseBand(0.6, 0.8)], 0.6)
        NoiseBand(low=0.6, high=0.8, name='')
    """
    level = noise_level_in_range(level)
    return next((band for band in bands if band.holds(level)), None)


def require_disjoint(bands: Sequence[NoiseBand]) -> None:
    """Refuse bands that overlap: two judges would claim a level.

    Raises:
        ValueError: it names two of them.
    """
    ordered = sorted(bands)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if second.low < first.high:
            raise ValueError(
                f"The noise bands {first.name or 'of one'} [{first.low}, {first.high}) and "
                f"{second.name or 'another'} [{second.low}, {second.high}) overlap: load one of them."
            )


def prompt_at_level(prompt: str, level: float) -> str:
    """The prompt as an adapter for several levels reads it: the level stands before it, in steps of 10 %.

    At the beginning, so that a long prompt that is cut keeps it; in coarse steps, so that every level was trained.

    Example:
        >>> prompt_at_level("a photo of a star", 0.58)
        '(noise 60 %) a photo of a star'
    """
    return f"(noise {round(10 * noise_level_in_range(level)) * 10} %) {prompt}"


@dataclass(frozen=True)
class Calibration:
    """Brings a band's scores into the unit of finished images: scale * score + offset.

    Pairs of one prompt and level, which a band is trained on, say nothing about offset and scale.

    Attributes:
        scale: positive.
        offset: in the unit of finished scores.

    Raises:
        ValueError: for a scale that is not positive, or numbers that are not finite.
    """

    scale: float
    offset: float

    def __post_init__(self) -> None:
        if not (0 < self.scale < math.inf and math.isfinite(self.offset)):
            raise ValueError(
                f"A calibration should be scale > 0 and a finite offset, got scale={self.scale}, offset={self.offset}."
            )

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores of any shape in the unit of finished images."""
        return self.scale * scores + self.offset


def fit_calibration(scores: Sequence[Tensor] | Tensor, finished: Sequence[Tensor] | Tensor) -> Calibration:
    """The affine map that foretells finished scores best, by least squares.

    The scale is that of the deviations from the mean of each prompt, which are what a search compares: prompts differ
    in offsets that no pair has taught. The offset brings the means together. A score that foretells little gets a
    small scale, as a regression should: it then moves the particles little.

    Args:
        scores: of each of P prompts (S,), the band's scores of predictions, finite; S at least 2, and of each prompt
            its own where recordings have different numbers of seeds.
        finished: likewise, scores of the finished images of the same trajectories.

    Raises:
        ValueError: for other shapes, fewer than two images of a prompt, scores without spread, or scores that fall
            where the finished ones rise: such a band is worse than none.

    Example:
        >>> finished = torch.tensor([[0.0, 1.0], [5.0, 7.0]])
        >>> fit_calibration(4 * finished + torch.tensor([[3.0], [-9.0]]), finished).scale
        0.25
    """
    if [row.shape for row in scores] != [row.shape for row in finished] or not _several_each(scores):
        raise ValueError(
            "A calibration needs scores and finished scores of the same prompts, (S,) of each with S of at least 2, "
            f"got {[tuple(row.shape) for row in scores][:4]} and {[tuple(row.shape) for row in finished][:4]}."
        )
    given, deviations = _pooled(scores)
    wanted, wanted_deviations = _pooled(finished)
    variance = deviations.square().sum()
    if not (variance > 0 and wanted.isfinite().all() and given.isfinite().all()):
        raise ValueError("A calibration needs finite scores that differ within a prompt.")
    scale = float((deviations * wanted_deviations).sum() / variance)
    if not scale > 0:
        raise ValueError(
            f"The scores fall where those of the finished images rise (slope {scale:.3g}): this band has learnt "
            "nothing that helps. Train it on more prompts, at a lower rate, or leave the level to the plain judge."
        )
    return Calibration(scale, float(wanted.mean() - scale * given.mean()))


def _several_each(rows: Sequence[Tensor] | Tensor) -> bool:
    return len(rows) > 0 and all(row.ndim == 1 and len(row) >= 2 for row in rows)


def _pooled(rows: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """All values of all prompts, and their deviations from the mean of their prompt."""
    doubled = [row.double() for row in rows]
    return torch.cat(doubled), torch.cat([row - row.mean() for row in doubled])


class BandedReward(Reward):
    """A reward with other rewards for bands of the noise level: any kind, where there are no adapters to switch.

    Finished images are for the plain reward: a call is a call of it. Scores of the bands have to be in its unit, as a
    `Calibration` brings them there.

    Args:
        plain: scores finished images, and predictions of levels in no band.
        bands: for each band the reward that scores its predictions.
        card: facts about the reward; by default those of the plain one.

    Raises:
        ValueError: for bands that overlap, or a reward that compares the images of a call.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> plain = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")
        >>> doubled = CallableReward(lambda images, prompts: 2 * images.mean(dim=(1, 2, 3)), "doubled")
        >>> reward = BandedReward(plain, {NoiseBand(0.5, 1.0): doubled})
        >>> [float(reward.at_noise(level)(torch.ones(1, 3, 2, 2), "")) for level in (0.0, 0.4, 0.7)]
        [1.0, 1.0, 2.0]
    """

    def __init__(self, plain: Reward, bands: dict[NoiseBand, Reward], *, card: RewardCard | None = None) -> None:
        require_disjoint(list(bands))
        for reward in (plain, *bands.values()):
            if reward.compares_images:
                raise ValueError(
                    f"{reward.card.name} compares the images of a call, so that its scores at different noise levels "
                    "have no common unit: use a reward that scores each image by itself."
                )
        self.plain, self.bands = plain, dict(bands)
        self.card = card or plain.card
        self.accepts_uint8 = plain.accepts_uint8

    @property
    def batch_size(self) -> int | None:  # type: ignore[override]
        """Number of images that the plain reward sees at once; setting it sets that of all."""
        return self.plain.batch_size

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        for reward in self._all:
            reward.batch_size = value

    @property
    def _all(self) -> tuple[Reward, ...]:
        return (self.plain, *self.bands.values())

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The plain reward."""
        return self.plain.score(images, prompts)

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Call the plain reward."""
        return self.plain(images, prompts)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Those of the plain reward."""
        return self.plain.score_with_parts(images, prompts)

    def at_noise(self, level: float) -> Reward:
        """The reward of the level's band; the plain one where there is none."""
        band = find_band(list(self.bands), level)
        return self.plain if band is None else self.bands[band]

    def for_previews(self) -> Reward:
        """That of the plain reward."""
        return self.plain.for_previews()

    @property
    def judges(self) -> tuple[str, ...]:
        """Those of the plain reward."""
        return self.plain.judges

    @contextmanager
    def limited_to(self, batch_size: int) -> Iterator[None]:
        """Limit all of them."""
        with ExitStack() as stack:
            for reward in self._all:
                stack.enter_context(reward.limited_to(batch_size))
            yield

    @property
    def device(self) -> torch.device | None:
        """Device of the plain reward."""
        return self.plain.device

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all of them, in place; return the reward itself."""
        for reward in self._all:
            reward.to(device, dtype)
        return self

    def modules_to_compile(self) -> list[nn.Module]:
        """Those of all."""
        return [module for reward in self._all for module in reward.modules_to_compile()]


def band_card(card: RewardCard, name: str) -> RewardCard:
    """The card of a band: that of the plain reward, under the band's name.

    Example:
        >>> band_card(RewardCard(name="imagereward@bands", summary="..."), "0.5").name
        'imagereward@0.5'
    """
    return dataclasses.replace(card, name=f"{card.name.removesuffix(BANDS_SUFFIX)}@{name}")


BANDS_SUFFIX = "@bands"
"""Behind the name of a reward: the same with the noise bands that the package holds for it."""


def name_without_bands(name: str) -> str:
    """The reward that judges finished images where `name` steers, bit for bit.

    Example:
        >>> name_without_bands("0.7*imagereward@bands + 0.3*clipscore")
        '0.7*imagereward + 0.3*clipscore'
    """
    return name.replace(BANDS_SUFFIX, "")


def band_folders(folder: Path, config_file: str) -> list[Path]:
    """The folders of bands in a folder: itself, or those directly below it, that hold a configuration file.

    Raises:
        FileNotFoundError: there is none.
    """
    if (folder / config_file).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{config_file}"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no noise band: expected {config_file} in it, or in folders below it.")
    return found


def write_band(folder: Path, band: NoiseBand) -> None:
    """Write `noise_band.json` beside the files of a reward."""
    write_whole(folder / BAND_FILE, json.dumps(dataclasses.asdict(band)) + "\n")


def read_band(folder: Path) -> NoiseBand:
    """Read what `write_band` wrote.

    Raises:
        ValueError: when it is something else.
    """
    path = folder / BAND_FILE
    fields = parse_json(path.read_text(encoding="utf-8"), path)
    if not isinstance(fields, dict) or set(fields) != {"low", "high", "name"}:
        raise ValueError(f"{path} should be an object with low, high and name, got {fields!r}.")
    try:
        return NoiseBand(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
