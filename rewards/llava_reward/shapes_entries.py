"""The LLaVA-Rewards that ship in the package, on the multimodal LLM of the shapes world; nothing is loaded here."""

from __future__ import annotations

from functools import partial

import torch

from fk_reward.rewards.card import RewardCard
from fk_reward.rewards.llava_reward.loading import load_llava_reward
from fk_reward.rewards.registry import RewardEntry

_JUDGES = {
    "alignment": "how well a picture of coloured shapes shows what the prompt says",
    "fidelity": "how sound and free of artefacts a picture of coloured shapes is",
    "safety": "whether a picture of coloured shapes is free of the forbidden sign",
}
_SPREADS = {"alignment": 0.13, "fidelity": 0.41, "safety": 0.58}
"""Among eight finished pictures of a held-out prompt: `examples/shapes/check_early_rewards.py`."""


def _embedded(dimension: str) -> RewardEntry:
    card = RewardCard(
        name=f"shapes-llava-reward-{dimension}",
        summary=f"LLaVA-Reward in small: {_JUDGES[dimension]}",
        spread=_SPREADS[dimension],
        differentiable=True,
        licence="Apache-2.0",
        source="Zhou et al., ICCV 2025, arXiv 2507.21391; trained by the scripts in examples/shapes",
        weights="in the package",
        memory="10 MB in float32",
    )
    build = partial(load_llava_reward, adapter=card.name, torch_dtype=torch.float32, batch_size=64, card=card)
    return RewardEntry(card, build)


ALIGNMENT = _embedded("alignment")
FIDELITY = _embedded("fidelity")
SAFETY = _embedded("safety")
