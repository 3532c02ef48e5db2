"""A reward without weights, registered under a name in the tests of the command line."""

from __future__ import annotations

from fk_reward.rewards import CallableReward, Reward, RewardCard, RewardEntry


def build() -> Reward:
    """Mean of all pixels."""
    return CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")


BRIGHTNESS = RewardEntry(
    RewardCard(name="brightness", summary="mean | of all pixels", typical_range=(0.0, 1.0), spread=0.1), build
)
