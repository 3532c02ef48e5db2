"""A reward that fails while it scores."""

from __future__ import annotations

from fk_reward.rewards import CallableReward, RewardCard, RewardEntry


def _fail(images, prompts):
    raise ZeroDivisionError("a defect of this reward")


BROKEN = RewardEntry(RewardCard(name="broken", summary="fails"), lambda: CallableReward(_fail, "broken"))
