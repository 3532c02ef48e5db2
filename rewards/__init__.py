"""Rewards: scores of images given prompts, their cards, and the names under which they are found."""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.rewards.base import CallableReward, NonFiniteScoreError, Reward, RewardCard, SafetyFacts
    from fk_reward.rewards.blip_itm import BlipITM
    from fk_reward.rewards.clipscore import CLIPScore, clip_score
    from fk_reward.rewards.composition import CompositeReward, ExpressionError, gate, maximum, minimum, standardize
    from fk_reward.rewards.imagereward import ImageReward
    from fk_reward.rewards.noise_bands import BandedReward, Calibration, NoiseBand
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

_MODULES = {
    "BandedReward": "noise_bands",
    "BlipITM": "blip_itm",
    "CLIPScore": "clipscore",
    "Calibration": "noise_bands",
    "CallableReward": "base",
    "CompositeReward": "composition",
    "ExpressionError": "composition",
    "ImagePreprocessing": "preprocessing",
    "ImageReward": "imagereward",
    "NoiseBand": "noise_bands",
    "NonFiniteScoreError": "base",
    "QAlign": "q_align",
    "REWARDS": "registry",
    "Reward": "base",
    "RewardCard": "base",
    "RewardEntry": "registry",
    "RewardLoadError": "registry",
    "SafetyFacts": "base",
    "VQAScore": "vqascore",
    "available_rewards": "registry",
    "clip_score": "clipscore",
    "gate": "composition",
    "load_reward": "registry",
    "maximum": "composition",
    "minimum": "composition",
    "reward_card": "registry",
    "standardize": "composition",
}

__all__ = [
    "REWARDS",
    "BandedReward",
    "BlipITM",
    "CLIPScore",
    "Calibration",
    "CallableReward",
    "CompositeReward",
    "ExpressionError",
    "ImagePreprocessing",
    "ImageReward",
    "NoiseBand",
    "NonFiniteScoreError",
    "QAlign",
    "Reward",
    "RewardCard",
    "RewardEntry",
    "RewardLoadError",
    "SafetyFacts",
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

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
