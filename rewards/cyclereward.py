"""CycleReward: alignment learnt from cycle consistency, by ImageReward's network with another head."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.blip import with_blip_tokens
from fk_reward.rewards.imagereward import ImageReward
from fk_reward.rewards.imagereward_model import OFFICIAL_TOKENIZER, ImageRewardConfig, read_model
from fk_reward.rewards.registry import RewardEntry

MAX_TOKENS = 128
"""Tokens that the authors' code reads of a prompt, special ones included."""

_RELEASE = "CycleReward-Combo.pth, release v1.0.0 of github.com/hjbahng/cyclereward"

_CARD = RewardCard(
    name="cyclereward",
    summary="CycleReward: how well image and text match, learnt from what survives a cycle of captioning and drawing",
    typical_range=(-3.0, 3.0),  # raw scores of a preference model; not standardised by its authors
    differentiable=True,
    max_prompt_tokens=MAX_TOKENS,
    looks_at="the central square",
    blind_to=("edges",),
    licence="MIT",
    source="Bahng et al. 2025, arXiv 2506.02095; github.com/hjbahng/cyclereward",
    weights=f"{_RELEASE}, given by the caller",
    memory="1.8 GB in float32, 0.9 GB in float16",
)


def load_cyclereward(
    *,
    weights: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    head_size: int = 64,
    torch_dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
) -> ImageReward:
    """Load `CycleReward-Combo.pth`, `-T2I` or `-I2T`: what `load_reward("cyclereward", ...)` calls.

    The network is ImageReward's but for a GELU between the layers of its MLP; the score is not standardised, and 128
    tokens of a prompt are read.

    Args:
        weights: the file.
        tokenizer: folder or hub id of BERT's tokenizer; by default `google-bert/bert-base-uncased`.
        head_size: width of the attention heads, which no tensor shows; 64 in every BLIP.
        torch_dtype: dtype of the weights; whatever the file has is converted.
        batch_size: number of images scored at once; None for all of one size.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: without `weights`, or for tensors that are not exactly those of a CycleReward.
    """
    from transformers import BertTokenizer

    if weights is None:
        raise ValueError(f"The weights are on no hub: fetch {_RELEASE}, and give weights=<file>.")
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: no such file of CycleReward.")
    return ImageReward(
        read_model(Path(weights), head_size=head_size, dtype=torch_dtype, gelu=True),
        with_blip_tokens(BertTokenizer.from_pretrained(tokenizer or OFFICIAL_TOKENIZER)),
        config=ImageRewardConfig(head_size=head_size, max_tokens=MAX_TOKENS, mean=0.0, std=1.0),
        batch_size=batch_size,
        card=dataclasses.replace(_CARD, weights=os.fspath(weights)),
    )


CYCLEREWARD = RewardEntry(_CARD, load_cyclereward)
