"""Diffusers pipelines wrapped by the Feynman-Kac particle sampler."""

from __future__ import annotations

import typing

from fk_reward import lazy

if typing.TYPE_CHECKING:
    from fk_reward.pipelines.acceleration import Compilation, speed_up
    from fk_reward.pipelines.cache_schedule import CacheSchedule
    from fk_reward.pipelines.caching import apply_cache_schedule, cache_components, remove_cache_schedule
    from fk_reward.pipelines.decoding import PREVIEWS, LatentDecoder, ReducedResolution
    from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline
    from fk_reward.pipelines.modular_block import SteeredDenoise
    from fk_reward.pipelines.output import FKSteeringOutput
    from fk_reward.pipelines.own_loop import LoopResult, SteeredLoop, loop_searches
    from fk_reward.pipelines.schedulers import SOLVERS, Solver, stochastic_scheduler
    from fk_reward.pipelines.watching import watch_steps
    from fk_reward.sampling.flow_match_glass import FlowMatchGLASSScheduler
    from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler

_MODULES = {
    "CacheSchedule": "cache_schedule",
    "Compilation": "acceleration",
    "FKSteeringOutput": "output",
    "FKSteeringPipeline": "fk_steering_pipeline",
    "FlowMatchGLASSScheduler": ".sampling.flow_match_glass",
    "FlowMatchSDEScheduler": ".sampling.flow_match_sde",
    "LatentDecoder": "decoding",
    "LoopResult": "own_loop",
    "PREVIEWS": "decoding",
    "ReducedResolution": "decoding",
    "SOLVERS": "schedulers",
    "Solver": "schedulers",
    "SteeredDenoise": "modular_block",
    "SteeredLoop": "own_loop",
    "apply_cache_schedule": "caching",
    "cache_components": "caching",
    "loop_searches": "own_loop",
    "remove_cache_schedule": "caching",
    "speed_up": "acceleration",
    "stochastic_scheduler": "schedulers",
    "watch_steps": "watching",
}

__all__ = [
    "PREVIEWS",
    "SOLVERS",
    "CacheSchedule",
    "Compilation",
    "FKSteeringOutput",
    "FKSteeringPipeline",
    "FlowMatchGLASSScheduler",
    "FlowMatchSDEScheduler",
    "LatentDecoder",
    "LoopResult",
    "ReducedResolution",
    "Solver",
    "SteeredDenoise",
    "SteeredLoop",
    "apply_cache_schedule",
    "cache_components",
    "loop_searches",
    "remove_cache_schedule",
    "speed_up",
    "stochastic_scheduler",
    "watch_steps",
]

__getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
