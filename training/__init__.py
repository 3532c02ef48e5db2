"""Training of LLaVA-Reward: losses, preference data and the trainer."""

from __future__ import annotations

from fk_reward.rewards.llava_reward.binary import binary_loss
from fk_reward.rewards.llava_reward.bradley_terry import bradley_terry_loss
from fk_reward.rewards.llava_reward.general_preference import general_preference_loss
from fk_reward.training.arguments import LlavaRewardTrainingArguments, RewardArguments
from fk_reward.training.curriculum import Curriculum, training_pairs
from fk_reward.training.dataset import PreferenceDataset, collate_preferences, split_by_prompt
from fk_reward.training.hard_negatives import HardNegative, choose_hard_negatives, hard_negatives
from fk_reward.training.image_source import ImageSource, UnreadableImageError
from fk_reward.training.predictions import PredictionRecords
from fk_reward.training.preference_data import (
    LabelledImage,
    PreferenceDataError,
    PreferencePair,
    RowProblem,
    validate_preferences,
)
from fk_reward.training.reading import LoadedPreferences, load_preferences, read_preferences
from fk_reward.training.trainable import TrainableReward, TrainableShare, new_dimension, trainable_share
from fk_reward.training.trainer import LlavaRewardTrainer

__all__ = [
    "Curriculum",
    "HardNegative",
    "ImageSource",
    "LabelledImage",
    "LlavaRewardTrainer",
    "LlavaRewardTrainingArguments",
    "LoadedPreferences",
    "PredictionRecords",
    "PreferenceDataError",
    "PreferenceDataset",
    "PreferencePair",
    "RewardArguments",
    "RowProblem",
    "TrainableReward",
    "TrainableShare",
    "UnreadableImageError",
    "binary_loss",
    "bradley_terry_loss",
    "choose_hard_negatives",
    "collate_preferences",
    "general_preference_loss",
    "hard_negatives",
    "load_preferences",
    "new_dimension",
    "read_preferences",
    "split_by_prompt",
    "trainable_share",
    "training_pairs",
    "validate_preferences",
]
