"""Calls that the tests of the pipelines share."""

from typing import ClassVar

import torch

from fk_reward import FKSteeringPipeline, Reward, RewardCard
from fk_reward.pipelines.decoding import preview_decoder

STEPS = 6


class BrightnessReward(Reward):
    """Mean of the red channel: free, differentiable, and different for each particle."""

    card: ClassVar[RewardCard] = RewardCard(
        name="brightness",
        summary="mean of the red channel",
        typical_range=(0.0, 1.0),
        spread=0.01,
        differentiable=True,
        max_prompt_tokens=None,
        licence="Apache-2.0",
        source="tests",
        weights="none",
        memory="none",
    )

    def score(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def steered(pipe, reward=None, **kwargs):
    wrapped = FKSteeringPipeline(pipe, reward=reward or BrightnessReward())
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


def constant(images, prompts):
    return torch.zeros(len(images))


def decoder_of(wrapped):
    """The decoder that the scoring steps of a wrapped pipeline have outside a call."""
    return preview_decoder(wrapped.preview, wrapped.pipe)
