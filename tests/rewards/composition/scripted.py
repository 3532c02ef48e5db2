"""Rewards whose scores a test chooses: pictures of one pixel, whose red, green and blue are the three scores."""

from __future__ import annotations

import torch

from fk_reward.rewards import Reward, RewardCard, RewardEntry

NAMES = ("a", "hps-v2.1", "safe@q")


class Channel(Reward):
    """8 x - 4 for the mean x of one channel: exact for one pixel and scores in [-4, 4] that are multiples of 1/4."""

    def __init__(self, channel=0, name=None, **card):
        self.channel = channel
        facts = {"summary": "one channel", "typical_range": (-4.0, 4.0), "spread": 0.5, "differentiable": True}
        self.card = RewardCard(name=name or NAMES[channel], **(facts | card))
        self.calls = []

    def score(self, images, prompts):
        self.calls.append(len(images))
        return 8 * images[:, self.channel].mean(dim=(1, 2)) - 4


class WithPrompt(Channel):
    """Reads the prompt, too."""

    def score(self, images, prompts):
        return super().score(images, prompts) + torch.tensor([0.1 * len(prompt) for prompt in prompts])


def pixels(*scores):
    """(B, 3, 1, 1): one picture for each triple of scores."""
    return ((torch.tensor(scores, dtype=torch.float32) + 4) / 8)[:, :, None, None]


def _entry(channel):
    return RewardEntry(Channel(channel).card, lambda: Channel(channel))


A, B, C = map(_entry, range(3))
ENTRIES = {name: f"tests.rewards.composition.scripted:{entry}" for name, entry in zip(NAMES, "ABC", strict=True)}
