"""Diffusers pipelines wrapped by the Feynman-Kac particle sampler."""

from fk_reward.pipelines.decoding import LatentDecoder
from fk_reward.pipelines.default_scheduler import stochastic_scheduler
from fk_reward.pipelines.fk_steering_pipeline import FKSteeringPipeline
from fk_reward.pipelines.output import FKSteeringOutput

__all__ = ["FKSteeringOutput", "FKSteeringPipeline", "LatentDecoder", "stochastic_scheduler"]
