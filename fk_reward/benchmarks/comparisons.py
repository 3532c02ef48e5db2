"""Rewards that compare pictures, and have no score of a single one."""

from __future__ import annotations

from typing import TypeGuard

from fk_reward.rewards import Reward
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge


def compares(reward: Reward) -> TypeGuard[LlavaReward | PreferenceJudge]:
    """Whether a reward compares pictures and has no score of a single one: a general preference, a judge of pairs.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> compares(load_reward("shapes-verifier"))
        False
    """
    if isinstance(reward, LlavaReward):
        return reward.config.objective == "general-preference"
    return isinstance(reward, PreferenceJudge)


def has_comparing_part(reward: Reward) -> bool:
    """Whether a composition has such a part, so that a picture's score depends on the others of the call.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> has_comparing_part(2 * load_reward("shapes-verifier"))
        False
    """
    return isinstance(reward, CompositeReward) and any(compares(part) for part in reward.parts.values())
