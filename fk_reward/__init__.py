"""Reward-guided inference-time scaling for Diffusers: Feynman-Kac steering with pluggable rewards.

The names below are imported when they are first used, so that what needs neither torch nor Diffusers (such as
`fk-reward --help`) does not wait for them.
"""

from __future__ import annotations

import typing

from fk_reward import lazy
from fk_reward.version import __version__

if typing.TYPE_CHECKING:
    from fk_reward.batch_sizes import BatchSizes
    from fk_reward.config import FKSteeringConfig
    from fk_reward.particle_filter import ParticleFilter
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline
    from fk_reward.rewards import Reward, RewardCard, available_rewards, load_reward
    from fk_reward.steering import SteeringRecord, steer
    from fk_reward.trace import SteeringTrace, TraceStep

_MODULES = {
    "BatchSizes": "batch_sizes",
    "FKSteeringConfig": "config",
    "FKSteeringOutput": "pipelines",
    "FKSteeringPipeline": "pipelines",
    "ParticleFilter": "particle_filter",
    "Reward": "rewards",
    "RewardCard": "rewards",
    "SteeringRecord": "steering",
    "SteeringTrace": "trace",
    "TraceStep": "trace",
    "available_rewards": "rewards",
    "load_reward": "rewards",
    "steer": "steering",
}

__all__ = [
    "BatchSizes",
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

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
