"""LLaVA-Reward's names in the registry; importing this module loads no weights."""

from __future__ import annotations

from functools import partial

from fk_reward.rewards.llava_reward.cards import CUSTOM_CARD, OFFICIAL_ADAPTERS, OFFICIAL_BACKBONES, official_card
from fk_reward.rewards.llava_reward.loading import load_llava_reward
from fk_reward.rewards.registry import RewardEntry


def _official(dimension: str, backbone: str) -> RewardEntry:
    card = official_card(dimension, backbone)
    build = partial(
        load_llava_reward,
        adapter=OFFICIAL_ADAPTERS,
        backbone=OFFICIAL_BACKBONES[backbone],
        dimension=dimension,
        card=card,
    )
    return RewardEntry(card, build)


LLAVA_REWARD = RewardEntry(CUSTOM_CARD, load_llava_reward)
ALIGNMENT = _official("alignment", "phi3_v")
FIDELITY = _official("fidelity", "phi3_v")
SAFETY = _official("safety", "phi3_v")
OVERALL = _official("overall", "phi3_v")
ALIGNMENT_QWEN = _official("alignment", "qwen2_5_vl")
FIDELITY_QWEN = _official("fidelity", "qwen2_5_vl")
SAFETY_QWEN = _official("safety", "qwen2_5_vl")
OVERALL_QWEN = _official("overall", "qwen2_5_vl")
