"""Rewards on BLIP, whose text encoder attends to the picture: ImageReward and image-text matching."""

from __future__ import annotations

from fk_reward.rewards.blip.imagereward import ImageReward
from fk_reward.rewards.blip.itm import BlipITM

__all__ = ["BlipITM", "ImageReward"]
