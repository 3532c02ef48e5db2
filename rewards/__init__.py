"""Rewards: scores of images given prompts, their cards, and the names under which they are found."""

from __future__ import annotations

from fk_reward.rewards.base import CallableReward, NonFiniteScoreError, Reward, RewardCard
from fk_reward.rewards.blip_itm import BlipITM
from fk_reward.rewards.clipscore import CLIPScore, clip_score
from fk_reward.rewards.composition import CompositeReward, ExpressionError, gate, maximum, minimum, standardize
from fk_reward.rewards.imagereward import ImageReward
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.q_align import QAlign
from fk_reward.rewards.registry import (
    REWARDS,
    RewardEntry,
    RewardLoadError,
    available_rewards,
    load_reward,
    reward_card,
)
from fk_reward.rewards.vqascore import VQAScore

__all__ = [
    "REWARDS",
    "BlipITM",
    "CLIPScore",
    "CallableReward",
    "CompositeReward",
    "ExpressionError",
    "ImagePreprocessing",
    "ImageReward",
    "NonFiniteScoreError",
    "QAlign",
    "Reward",
    "RewardCard",
    "RewardEntry",
    "RewardLoadError",
    "VQAScore",
    "available_rewards",
    "clip_score",
    "gate",
    "load_reward",
    "maximum",
    "minimum",
    "reward_card",
    "standardize",
]
