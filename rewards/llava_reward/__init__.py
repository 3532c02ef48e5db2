"""LLaVA-Reward (Zhou et al., ICCV 2025, arXiv 2507.21391): hidden states of a multimodal LLM as a reward.

The names below are imported when they are first used, so that reading a card does not wait for transformers and PEFT.
"""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.rewards.llava_reward.backbones.base import BACKBONES, Backbone, BackboneInputs, load_backbone
    from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
    from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
    from fk_reward.rewards.llava_reward.entries import load_llava_reward
    from fk_reward.rewards.llava_reward.general_preference import mean_preference, preference_logits
    from fk_reward.rewards.llava_reward.head import RewardHead, SkipCA
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
    from fk_reward.rewards.llava_reward.model import LlavaRewardModel

_MODULES = {
    "BACKBONES": "backbones.base",
    "Backbone": "backbones.base",
    "BackboneInputs": "backbones.base",
    "LlavaReward": "llava_reward",
    "LlavaRewardConfig": "config",
    "LlavaRewardModel": "model",
    "RewardCheckpoint": "checkpoint",
    "RewardHead": "head",
    "SkipCA": "head",
    "load_backbone": "backbones.base",
    "load_llava_reward": "entries",
    "mean_preference": "general_preference",
    "preference_logits": "general_preference",
}

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneInputs",
    "LlavaReward",
    "LlavaRewardConfig",
    "LlavaRewardModel",
    "RewardCheckpoint",
    "RewardHead",
    "SkipCA",
    "load_backbone",
    "load_llava_reward",
    "mean_preference",
    "preference_logits",
]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
