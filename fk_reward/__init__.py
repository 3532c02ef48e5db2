"""Reward-guided inference-time scaling for Diffusers: Feynman-Kac steering with pluggable rewards."""

from fk_reward.config import FKSteeringConfig
from fk_reward.particle_filter import ParticleFilter
from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline
from fk_reward.rewards import Reward, RewardCard, available_rewards, load_reward
from fk_reward.steering import SteeringRecord, steer
from fk_reward.trace import SteeringTrace, TraceStep
from fk_reward.version import __version__

__all__ = [
    "FKSteeringConfig",
    "FKSteeringOutput",
    "FKSteeringPipeline",
    "ParticleFilter",
    "Reward",
    "RewardCard",
    "SteeringRecord",
    "SteeringTrace",
    "TraceStep",
    "__version__",
    "available_rewards",
    "load_reward",
    "steer",
]
