"""Rewards for trainers: in their signatures, and in other processes."""

from __future__ import annotations

from fk_reward.rewards.workers.pool import RewardWorkerError, RewardWorkers
from fk_reward.rewards.workers.trainers import DDPOReward, FlowGRPOReward

__all__ = ["DDPOReward", "FlowGRPOReward", "RewardWorkerError", "RewardWorkers"]
