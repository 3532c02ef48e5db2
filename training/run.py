"""A training from its settings to a checkpoint: what `fk-reward train` does."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import EarlyStoppingCallback

from fk_reward.rewards.llava_reward.backbone import Backbone
from fk_reward.rewards.llava_reward.backbones import load_backbone
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments
from fk_reward.training.checkpoints import last_complete_checkpoint
from fk_reward.training.dataset import PreferenceDataset, collate_preferences
from fk_reward.training.new_dimension import new_dimension
from fk_reward.training.objective import is_pairwise
from fk_reward.training.preference_data import LabelledImage, PreferencePair
from fk_reward.training.readers import read_preferences
from fk_reward.training.split import split_by_prompt
from fk_reward.training.trainable import TrainableReward
from fk_reward.training.trainer import LlavaRewardTrainer


def make_trainer(reward: RewardArguments, training: LlavaRewardTrainingArguments) -> LlavaRewardTrainer:
    """Load backbone and data, and set up the training of a new dimension.

    Args:
        reward: what is trained on what.
        training: how.

    Raises:
        FileExistsError: when `output_dir` has checkpoints and they are not to be resumed.
        OSError: when files are missing.
        ValueError: for settings that do not go together, and data that cannot be used.
    """
    _checkpoint_to_resume(reward, training)
    train, validation = load_datasets(reward, seed=training.seed)
    model = make_model(reward, seed=training.seed)
    if train.is_labelled == is_pairwise(model.reward_config):
        kind = "labelled images" if train.is_labelled else "pairs"
        raise ValueError(f"Objective {reward.objective!r} does not fit the data, which are {kind}.")
    patience = reward.early_stopping_patience
    return LlavaRewardTrainer(
        model,
        training,
        data_collator=collate_preferences,
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
    )


def make_model(reward: RewardArguments, *, seed: int) -> TrainableReward:
    """Load the backbone and attach an untrained dimension to it.

    Args:
        reward: which backbone and dimension.
        seed: of the dimension's weights.

    Raises:
        OSError: when files of the backbone are missing.
        ValueError: for settings that do not go together, among them image options that the backbone does not have.
    """
    backbone = _load_backbone(reward)
    network = LlavaRewardModel(backbone)
    key = new_dimension(
        network,
        reward.reward_config(backbone),
        lora_rank=reward.lora_rank,
        lora_alpha=reward.lora_alpha,
        lora_dropout=reward.lora_dropout,
        seed=seed,
    )
    return TrainableReward(network, key, projector=reward.train_projector)


def load_datasets(reward: RewardArguments, *, seed: int) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """Read and check the data; all of it, before anything is trained.

    Args:
        reward: where the data are.
        seed: of the split, where there is no file for validation.

    Returns:
        Training and validation data; None without a validation file and with a fraction of 0.

    Raises:
        OSError: when a file is missing.
        ValueError: for rows that cannot be used; it says which.
    """
    items = _read(reward.train_data, reward)
    if reward.validation_data is not None:
        return PreferenceDataset(items), PreferenceDataset(_read(reward.validation_data, reward))
    if reward.validation_fraction == 0:
        return PreferenceDataset(items), None
    train, validation = split_by_prompt(items, fraction=reward.validation_fraction, seed=seed)
    return PreferenceDataset(train), PreferenceDataset(validation)


def run_training(
    trainer: LlavaRewardTrainer, reward: RewardArguments, training: LlavaRewardTrainingArguments
) -> dict[str, float]:
    """Train, from a checkpoint where there is one to resume, and write the result into `output_dir`.

    The result is a checkpoint that `load_reward("llava-reward", adapter=output_dir)` reads, with the weights that were
    best on the validation set, beside `trainer_state.json` and `all_results.json`.

    Args:
        trainer: as `make_trainer` made it.
        reward: the settings that it was made with.
        training: the settings that it was made with.

    Returns:
        The final measures on the validation set; empty without one.
    """
    checkpoint = _checkpoint_to_resume(reward, training)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_metrics("train", result.metrics)
    metrics = {} if trainer.eval_dataset is None else trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()
    return metrics


def _read(path: str, reward: RewardArguments) -> list[PreferencePair] | list[LabelledImage]:
    return read_preferences(
        path, image_root=reward.image_root, dimension=reward.dimension, skip_bad_rows=reward.skip_bad_rows
    )


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
    if training.resume_from_checkpoint is not None:
        return Path(training.resume_from_checkpoint)
    found = last_complete_checkpoint(training.output_dir)
    if found is not None and not reward.resume:
        raise FileExistsError(f"{found} is there already: add --resume to go on from it, or name another output_dir.")
    return found
