"""Skill experts: prompts, images, LoRA experts and their merge, as SELMA does it (Li et al. 2024, arXiv 2403.06952)."""

from __future__ import annotations

from fk_reward.training.skills.adapter_files import fuse, merge_adapters, read_adapter, write_adapter
from fk_reward.training.skills.experts import ExpertConfig, TrainedStep, train_expert
from fk_reward.training.skills.images import Drawing, DrawnImage, draw_images, read_images
from fk_reward.training.skills.low_rank import LowRank, merge_updates
from fk_reward.training.skills.near_duplicates import DistinctPrompts, rouge_l
from fk_reward.training.skills.prompts import PromptWriter, prompts_by_rules, prompts_of_shapes
from fk_reward.training.skills.reward_merging import merge_rewards
from fk_reward.training.skills.templates import Templates

__all__ = [
    "DistinctPrompts",
    "DrawnImage",
    "Drawing",
    "ExpertConfig",
    "LowRank",
    "PromptWriter",
    "Templates",
    "TrainedStep",
    "draw_images",
    "fuse",
    "merge_adapters",
    "merge_rewards",
    "merge_updates",
    "prompts_by_rules",
    "prompts_of_shapes",
    "read_adapter",
    "read_images",
    "rouge_l",
    "train_expert",
    "write_adapter",
]
