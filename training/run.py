"""A training from its settings to a checkpoint: what `fk-reward train` does."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import EarlyStoppingCallback

from fk_reward.durable_files import naming_path
from fk_reward.output_folder import hold_folder_together
from fk_reward.rewards.llava_reward.backbones.base import Backbone, load_backbone
from fk_reward.rewards.llava_reward.loading import read_initial
from fk_reward.rewards.llava_reward.model import LlavaRewardModel, images_for
from fk_reward.rewards.llava_reward.objective import Objective
from fk_reward.rewards.prompt_limits import num_positions, require_positions
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments
from fk_reward.training.band_training import BandData, calibrate_band, require_one_epoch
from fk_reward.training.checkpoints import (
    checkpoint_problems,
    find_checkpoints,
    finished_metrics,
    last_complete_checkpoint,
)
from fk_reward.training.dataset import PreferenceDataset, collate_preferences, split_by_prompt
from fk_reward.training.predictions import is_recording
from fk_reward.training.preference_data import PreferenceItem, PreferencePair, labels_of_pairs, report_problems
from fk_reward.training.reading import read_preferences
from fk_reward.training.rows import RowProblem
from fk_reward.training.trainable import TrainableReward, continued_dimension, new_dimension
from fk_reward.training.trainer import LlavaRewardTrainer

logger = logging.getLogger(__name__)
_CONTROL = re.compile(r"[<\[]")


def make_trainer(reward: RewardArguments, training: LlavaRewardTrainingArguments) -> LlavaRewardTrainer:
    """Load backbone and data, and set up the training of a new dimension.

    Args:
        reward: reward, backbone and data.
        training: settings of the training.

    Raises:
        FileExistsError: when `output_dir` has checkpoints, without `resume`.
        NotADirectoryError: when it is a file.
        OSError: when files are missing.
        ValueError: for settings that contradict each other, and unusable data.
    """
    _checkpoint_to_resume(reward, training)  # raises now what would stop `run_training` after everything is loaded
    items, validation_items = _read_data(reward, seed=training.seed)  # before the backbone, which takes longer
    model = make_model(reward, seed=training.seed)
    backbone, skip = model.network.backbone, reward.skip_bad_rows
    train, validation = _dataset(_readable(items, backbone, skip_bad_rows=skip), model.objective), None
    if validation_items is not None:
        validation = _dataset(_readable(validation_items, backbone, skip_bad_rows=skip), model.objective)
    model.objective.check_data(is_labelled=train.is_labelled)
    if reward.noise_band is not None:
        train.is_ordered = True
        require_one_epoch(training)
    patience = reward.early_stopping_patience
    return LlavaRewardTrainer(
        model,
        training,
        data_collator=collate_preferences,
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
    )


def _dataset(items: list[PreferenceItem], objective: Objective) -> PreferenceDataset:
    """The items; for an objective that takes no pairs, pairs as labelled images."""
    pairs = [item for item in items if isinstance(item, PreferencePair)]
    if objective.takes_pairs or len(pairs) < len(items):
        return PreferenceDataset(items)
    logger.info("Objective %s: the images of %d pairs are read as labelled ones.", objective.name, len(pairs))
    return PreferenceDataset(labels_of_pairs(pairs))


def make_model(reward: RewardArguments, *, seed: int) -> TrainableReward:
    """Load the backbone and attach a dimension to it: an untrained one, or what `initial_adapter` was trained to.

    Args:
        reward: which backbone and dimension.
        seed: of the dimension's weights.

    Raises:
        OSError: when files of the backbone are missing.
        ValueError: for settings that contradict each other, among them image options that the backbone does not have.
    """
    backbone = _load_backbone(reward)
    network, config = LlavaRewardModel(backbone), reward.reward_config(backbone)
    if reward.initial_adapter is not None:
        initial = read_initial(reward.initial_adapter, backbone=backbone.model_type, dimension=reward.dimension)
        return TrainableReward(network, continued_dimension(network, config, initial), projector=reward.train_projector)
    key = new_dimension(
        network,
        config,
        lora_rank=reward.lora_rank,
        lora_alpha=reward.lora_alpha,
        lora_dropout=reward.lora_dropout,
        seed=seed,
    )
    return TrainableReward(network, key, projector=reward.train_projector)


def run_training(
    trainer: LlavaRewardTrainer, reward: RewardArguments, training: LlavaRewardTrainingArguments
) -> dict[str, float]:
    """Train, from a checkpoint where there is one to resume, and write the result into `output_dir`.

    The result is a checkpoint that `load_reward("llava-reward", adapter=output_dir)` reads, with the weights that were
    best on the validation set, beside `trainer_state.json` and `all_results.json`. The files of a finished training are
    not changed.

    Args:
        trainer: from `make_trainer`.
        reward: settings that were passed to `make_trainer`.
        training: settings that were passed to `make_trainer`.

    Returns:
        The final measures on the validation set; empty without one.

    Raises:
        FolderInUseError: an OSError, when another training writes into `output_dir`.
        OSError: when that folder cannot be written to; it is named.
    """
    with hold_folder_together(training.output_dir, PartialState()), naming_path(training.output_dir):
        # Again, now that the folder is held: another training may have written or finished meanwhile.
        checkpoint = _checkpoint_to_resume(reward, training)
        if checkpoint is not None:
            patience, steps = reward.early_stopping_patience, trainer.planned_steps
            known = finished_metrics(training.output_dir, planned_steps=steps, patience=patience)
            if known is not None:
                logger.info("The training in %s is finished: nothing to do.", training.output_dir)
                return known | _calibrated(trainer, reward, training)
        return _train(trainer, checkpoint) | _calibrated(trainer, reward, training)


def _calibrated(
    trainer: LlavaRewardTrainer, reward: RewardArguments, training: LlavaRewardTrainingArguments
) -> dict[str, float]:
    """Calibrate the adapter of a noise band, unless it is; the first of several processes does."""
    if reward.noise_band is None or not trainer.is_world_process_zero():
        return {}
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        logger.warning(
            "Sharded weights are not calibrated: start the same command with --resume in one process, which does."
        )
        return {}
    data = BandData.read(reward, seed=training.seed)
    return calibrate_band(trainer.reward, training.output_dir, data, batch_size=training.per_device_eval_batch_size)


def _train(trainer: LlavaRewardTrainer, checkpoint: Path | None) -> dict[str, float]:
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if result.metrics:  # empty where the checkpoint had all steps already
        trainer.save_metrics("train", result.metrics)
    metrics = {} if trainer.eval_dataset is None else trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.save_model()
    trainer.save_state()  # last: this file marks the training as finished
    return metrics


def _read_data(
    reward: RewardArguments, *, seed: int
) -> tuple[Sequence[PreferenceItem], Sequence[PreferenceItem] | None]:
    """Training and validation data; the latter is None without a validation file and with a fraction of 0."""
    if reward.noise_band is not None:
        return BandData.read(reward, seed=seed).pairs()
    for path in (reward.train_data, reward.validation_data):
        if path is not None and is_recording(path):
            raise ValueError(f"{path} holds recorded predictions, for an adapter of a noise band: give noise_band.")
    items = _read(reward.train_data, reward)
    if reward.validation_data is not None:
        return items, _read(reward.validation_data, reward)
    if reward.validation_fraction == 0:
        return items, None
    return split_by_prompt(items, fraction=reward.validation_fraction, seed=seed)


def _read(path: str, reward: RewardArguments) -> Sequence[PreferenceItem]:
    return read_preferences(
        path, image_root=reward.image_root, dimension=reward.dimension, skip_bad_rows=reward.skip_bad_rows
    )


def _readable(items: Sequence[PreferenceItem], backbone: Backbone, *, skip_bad_rows: bool) -> list[PreferenceItem]:
    """Refuse, or drop, rows that this backbone cannot read: they would stop a running training."""
    reasons = [_prompt_problem(item, backbone) for item in items]
    places = [item.origin or f"row {number}" for number, item in enumerate(items, start=1)]
    problems = [RowProblem(place, reason) for place, reason in zip(places, reasons, strict=True) if reason]
    report_problems(problems, len(items), skip_bad_rows=skip_bad_rows)
    return [item for item, reason in zip(items, reasons, strict=True) if reason is None]


def _prompt_problem(item: PreferenceItem, backbone: Backbone) -> str | None:
    """Why the backbone cannot read the prompts of an item, or None."""
    # Trying a prompt takes an image, so only suspicious ones are tried: those with a character that begins a control
    # token, and long ones. A token is at least a byte, and images leave the prompt at least a quarter of the positions.
    positions = num_positions(backbone.language_model.config)
    if not any(len(text.encode()) > positions // 4 or _CONTROL.search(text) for text in item.prompts):
        return None
    try:
        inputs = backbone.prepare(images_for(backbone, [image.load() for image in item.images]), item.prompts)
        require_positions(inputs.attention_mask.sum(dim=1).tolist(), item.prompts, positions)
    except ValueError as error:
        return str(error)
    return None


def _load_backbone(reward: RewardArguments) -> Backbone:
    try:
        return load_backbone(
            reward.backbone,
            torch_dtype=getattr(torch, reward.backbone_dtype),
            attn_implementation=reward.attn_implementation,
            num_crops=reward.num_crops,
            min_pixels=reward.min_pixels,
            max_pixels=reward.max_pixels,
        )
    except TypeError as error:  # an option of another backbone
        raise ValueError(str(error)) from error


def _checkpoint_to_resume(reward: RewardArguments, training: LlavaRewardTrainingArguments) -> Path | None:
    folder = Path(training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output_dir {folder} is a file; choose another name.")
    if training.resume_from_checkpoint is not None:
        named = Path(training.resume_from_checkpoint)
        if problems := checkpoint_problems(named):
            raise ValueError(f"--resume_from_checkpoint {named} is not complete: {'; '.join(problems)}.")
        return named
    if reward.resume:
        return last_complete_checkpoint(folder)
    if found := find_checkpoints(folder):
        raise FileExistsError(
            f"{found[0]} already exists: add --resume to continue from it, or name another output_dir."
        )
    return None
