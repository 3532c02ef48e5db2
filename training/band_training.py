"""The training of an adapter for a noise band: its pairs, and its calibration at the end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fk_reward.durable_files import write_whole
from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE, load_own_checkpoint, read_config
from fk_reward.rewards.noise_bands import NoiseBand, fit_calibration, prompt_at_level
from fk_reward.training.curriculum import Curriculum, held_out, training_pairs, validation_pairs
from fk_reward.training.predictions import PredictionRecords, load_recordings, with_scores
from fk_reward.training.preference_data import PreferencePair

if TYPE_CHECKING:
    from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments
    from fk_reward.training.trainable import TrainableReward

logger = logging.getLogger(__name__)

MAX_CALIBRATION_IMAGES = 4000
"""Predictions that a calibration reads at most: of two numbers, thousands say enough."""
_PEOPLE = "teacher_scores"
"""The teacher's name where its scores come from a file."""


@dataclass(frozen=True)
class BandData:
    """Recorded predictions of a training, and which of their prompts are for what.

    Attributes:
        recordings: of the training prompts.
        validation: of the validation prompts; the same recordings where they are a part of them.
        curriculum: how pairs are drawn.
        held_out: texts for validation; never trained on, also where `validation` has recordings of its own.
        calibrate_to: recorded reward in whose unit the adapter is to score.
    """

    recordings: tuple[PredictionRecords, ...]
    validation: tuple[PredictionRecords, ...]
    curriculum: Curriculum
    held_out: frozenset[str]
    calibrate_to: str

    @classmethod
    def read(cls, reward: RewardArguments, *, seed: int) -> BandData:
        """Read the folders that a training names.

        Raises:
            FileNotFoundError: one of them is no finished recording.
            ValueError: settings that do not fit.
        """
        if reward.noise_band is None:
            raise ValueError("Recorded predictions are for an adapter of a noise band: give noise_band.")
        recordings = load_recordings(reward.train_data)
        teacher = reward.teacher or next(iter(recordings[0].scores))
        if reward.teacher_scores is not None:
            if len(recordings) > 1 or reward.teacher is not None:
                raise ValueError("teacher_scores are those of one folder, and no teacher is named beside them.")
            teacher, recordings = _PEOPLE, [with_scores(recordings[0], reward.teacher_scores, _PEOPLE)]
        low, high = reward.noise_band
        curriculum = Curriculum(
            band=NoiseBand(low, high, reward.dimension.partition("@")[2]),
            teacher=teacher,
            num_pairs=reward.num_pairs,
            ramp=reward.curriculum,
            clean_fraction=reward.clean_fraction,
            min_gap=reward.min_gap,
            level_in_prompt=reward.level_in_prompt,
            seed=seed,
        )
        validation, texts = recordings, [text for records in recordings for text in records.prompts]
        if reward.validation_data is not None:
            validation = load_recordings(reward.validation_data)
            # what stands in both is validated on, as the user says which prompts these are
            held = {text for records in validation for text in records.prompts}
        else:
            held = held_out(texts, fraction=reward.validation_fraction, seed=seed)
        return cls(tuple(recordings), tuple(validation), curriculum, frozenset(held), reward.calibrate_to or teacher)

    def pairs(self) -> tuple[list[PreferencePair], list[PreferencePair] | None]:
        """Pairs for training, in their order, and for validation; None where nothing is held out."""
        train = training_pairs(self.recordings, self.curriculum, without=self.held_out)
        if not self.held_out:
            return train, None
        return train, validation_pairs(self.validation, self.curriculum, only=self.held_out)

    def calibration_rows(self) -> Iterator[tuple[PredictionRecords, int, float]]:
        """Recordings, training prompts' places and levels of the band, as many as are read, spread over all."""
        found = [
            (records, place, level)
            for records in self.recordings
            for place, text in enumerate(records.prompts)
            if text not in self.held_out
            for level in self.curriculum.levels(records)
        ]
        rows = MAX_CALIBRATION_IMAGES // max(records.num_seeds for records in self.recordings)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.curriculum.seed))
        return (found[index] for index in sorted(order[: max(rows, 1)].tolist()))


def require_one_epoch(training: LlavaRewardTrainingArguments) -> None:
    """Refuse a training whose length is not that of its curriculum.

    Raises:
        ValueError: for more epochs than one, or a number of steps.
    """
    if training.num_train_epochs != 1 or training.max_steps > 0:
        raise ValueError(
            "A curriculum is one epoch of num_pairs pairs: set num_train_epochs: 1, leave max_steps out, and choose "
            f"num_pairs; got num_train_epochs={training.num_train_epochs:g} and max_steps={training.max_steps}."
        )


def calibrate_band(
    model: TrainableReward, folder: str | Path, data: BandData, *, batch_size: int = 8
) -> dict[str, float]:
    """Bring an adapter's scores into the unit of finished images, and write this into its checkpoint.

    Args:
        model: of the training; gets the weights of the checkpoint.
        folder: of the checkpoint; one that is calibrated already is left alone.
        data: of the training; held-out prompts play no part.
        batch_size: predictions at once.

    Returns:
        `calibration_scale` and `calibration_offset`; nothing where it was calibrated already.

    Raises:
        ValueError: for an adapter whose scores do not rise with the finished ones; its checkpoint stays uncalibrated.
    """
    config = read_config(Path(folder) / CONFIG_FILE)
    if config.calibration is not None:
        return {}
    model.restore(load_own_checkpoint(folder))
    rows = list(data.calibration_rows())
    targets = [torch.as_tensor(records.of(data.calibrate_to)[place]) for records, place, _ in rows]
    scores = [_scored(model, *row, batch_size=batch_size) for row in rows]
    found = fit_calibration(scores, targets)
    calibrated = dataclasses.replace(config, calibration=dataclasses.asdict(found))
    write_whole(Path(folder) / CONFIG_FILE, calibrated.to_json())
    logger.info("Calibrated to %s: scale %.4g, offset %.4g.", data.calibrate_to, found.scale, found.offset)
    return {"calibration_scale": found.scale, "calibration_offset": found.offset}


@torch.no_grad()
def _scored(model: TrainableReward, records: PredictionRecords, place: int, level: float, *, batch_size: int) -> Tensor:
    """(S,) scores of the predictions of a prompt at a level, before any calibration."""
    model.eval()
    prompt = records.prompts[place]
    text = prompt_at_level(prompt, level) if model.reward_config.level_in_prompt else prompt
    images = records.images(place, level)
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    vectors = torch.cat([model(batch, [text] * len(batch)) for batch in batches])
    scores = model.objective.score(vectors, [text] * len(images), temperature=model.reward_config.temperature)
    return scores.double().cpu()
