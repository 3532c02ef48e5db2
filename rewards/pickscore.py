"""PickScore: CLIP ViT-H/14 fine-tuned on the choices of the Pick-a-Pic users."""

from __future__ import annotations

import dataclasses
import os

import torch

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.clipscore import CLIPScore, scale_card
from fk_reward.rewards.known_biases import ARTEFACTS
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import load_complete

_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the one that the authors' snippet uses
_SCALE = 100.0  # exp of the logit_scale of the published weights

_COSINE_CARD = RewardCard(
    name="pickscore",
    summary="how people would rank the image for its prompt; a CLIP ViT-H/14 trained on Pick-a-Pic",
    typical_range=(0.16, 0.26),  # an order of magnitude from common experience, not measured here
    spread=0.0059,
    spread_source="mean of 100 prompts with 200 finished images each: 0.574 on SDXL, 0.613 on FLUX.1-dev, both times "
    "100 the cosine, by the scores that github.com/TerrysLearning/TTSnap publishes",
    differentiable=True,
    max_prompt_tokens=77,
    looks_at="the central square",
    blind_to=("edges",),
    biases=(ARTEFACTS,),
    licence="MIT (github.com/yuvalkirstain/PickScore)",
    source="Kirstain et al. 2023, arXiv 2305.01569; README.md of github.com/yuvalkirstain/PickScore",
    weights="yuvalkirstain/PickScore_v1",
    memory="3.9 GB in float32, 2.0 GB in float16",
)


def _build_pickscore(
    *,
    model: str | os.PathLike[str] = _COSINE_CARD.weights,
    processor: str | os.PathLike[str] = _PROCESSOR,
    torch_dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    revision: str = "main",
) -> CLIPScore:
    """Cosine times the exponential of the model's own `logit_scale`."""
    from transformers import CLIPModel, CLIPTokenizer

    clip = load_complete(CLIPModel, model, dtype="auto", revision=revision)  # half precision would round logit_scale
    scale = clip.logit_scale.float().exp().item()
    reward = CLIPScore(
        clip.to(torch_dtype or torch.float32),
        CLIPTokenizer.from_pretrained(processor),
        preprocessing=ImagePreprocessing.from_pretrained(processor),
        scale=scale,
        batch_size=batch_size,
        card=dataclasses.replace(_COSINE_CARD, weights=str(model)),
    )
    return in_loaded_dtype(reward, torch_dtype)


PICKSCORE = RewardEntry(scale_card(_COSINE_CARD, _SCALE), _build_pickscore)
