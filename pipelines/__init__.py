"""Diffusers pipelines wrapped by the Feynman-Kac particle sampler."""

from fk_reward.pipelines.acceleration import Compilation, speed_up
from fk_reward.pipelines.decoding import PREVIEWS, LatentDecoder, ReducedResolution
from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline
from fk_reward.pipelines.output import FKSteeringOutput
from fk_reward.pipelines.schedulers import SOLVERS, Solver, stochastic_scheduler
from fk_reward.sampling.flow_match_glass import FlowMatchGLASSScheduler
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler

__all__ = [
    "PREVIEWS",
    "SOLVERS",
    "Compilation",
    "FKSteeringOutput",
    "FKSteeringPipeline",
    "FlowMatchGLASSScheduler",
    "FlowMatchSDEScheduler",
    "LatentDecoder",
    "ReducedResolution",
    "Solver",
    "speed_up",
    "stochastic_scheduler",
]
