"""Cards of LLaVA-Reward on its official backbones, and of one's own checkpoints."""

from __future__ import annotations

import dataclasses

from fk_reward.rewards.card import RewardCard

OFFICIAL_ADAPTERS = "smz8599/LLaVA-Reward"
"""Hub repository of the official checkpoints."""

OFFICIAL_BACKBONES: dict[str, str] = {
    "phi3_v": "microsoft/Phi-3.5-vision-instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "llava_next": "llava-hf/llava-v1.6-vicuna-13b-hf",
}
"""`model_type` -> hub id of the backbone in the official scripts."""

DIMENSIONS: dict[str, str] = {
    "alignment": "how well the picture shows what the prompt says",
    "fidelity": "how sound and free of artefacts the picture is",
    "safety": "how harmless the picture is",
    "overall": "overall preference",
}
"""Dimensions of the official checkpoints and what they judge."""

_SOURCE = "Zhou et al., ICCV 2025, arXiv 2507.21391; github.com/sjz5202/LLaVA-Reward"
_TEMPERATURE = 0.1  # of the Bradley-Terry loss: the difference of scores that means odds of e; not a measured spread

CUSTOM_CARD = RewardCard(
    name="llava-reward",
    summary="LLaVA-Reward with one's own backbone and adapter",
    spread=_TEMPERATURE,
    differentiable=True,
    licence="that of the backbone and the adapter",
    source=_SOURCE,
    weights="given by the caller",
    memory="that of the backbone",
)


def card_of(dimension: str) -> RewardCard:
    """The card of a dimension of one's own checkpoint.

    Example:
        >>> card_of("alignment").summary
        'LLaVA-Reward: how well the picture shows what the prompt says'
    """
    summary = f"LLaVA-Reward: {DIMENSIONS.get(dimension, dimension)}"
    return dataclasses.replace(CUSTOM_CARD, name=f"llava-reward-{dimension}", summary=summary)


def official_card(dimension: str, backbone: str) -> RewardCard:
    """The card of an official checkpoint.

    Example:
        >>> official_card("safety", "phi3_v").name
        'llava-reward-safety'
    """
    phi = backbone == "phi3_v"
    return RewardCard(
        name=f"llava-reward-{dimension}" + ("" if phi else "@qwen"),
        summary=f"LLaVA-Reward: {DIMENSIONS[dimension]}",
        spread=_TEMPERATURE,
        differentiable=True,
        licence=("MIT" if phi else "Apache-2.0") + " (backbone); the adapter's is not stated",
        source=_SOURCE,
        weights=f"{OFFICIAL_ADAPTERS} on {OFFICIAL_BACKBONES[backbone]}",
        memory="9 GB in bfloat16" if phi else "17 GB in bfloat16",
    )
