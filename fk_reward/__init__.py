"""Reward-guided inference-time scaling for Diffusers: Feynman-Kac steering with pluggable rewards.

The names below are imported when they are first used, so that what needs neither torch nor Diffusers (such as
`fk-reward --help`) does not wait for them.
"""

from __future__ import annotations

import typing

from fk_reward import lazy
from fk_reward.version import __version__

if typing.TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline
    from fk_reward.pipelines.batch_sizes import BatchSizes
    from fk_reward.rewards import Reward, RewardCard, available_rewards, load_reward
    from fk_reward.sampling.steering import SteeringRecord, steer
    from fk_reward.sampling.trace import SteeringTrace, TraceStep
    from fk_reward.search.feynman_kac import FKSteeringConfig
    from fk_reward.smc.particle_filter import ParticleFilter

_MODULES = {
    "BatchSizes": "pipelines.batch_sizes",
    "FKSteeringConfig": "search.feynman_kac",
    "FKSteeringOutput": "pipelines",
    "FKSteeringPipeline": "pipelines",
    "ParticleFilter": "smc.particle_filter",
    "Reward": "rewards",
    "RewardCard": "rewards",
    "SteeringRecord": "sampling.steering",
    "SteeringTrace": "sampling.trace",
    "TraceStep": "sampling.trace",
    "available_rewards": "rewards",
    "load_reward": "rewards",
    "steer": "sampling.steering",
}

# Written out beside `_MODULES`: type checkers and editors read a literal list only.
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
