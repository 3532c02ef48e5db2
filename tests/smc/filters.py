"""Particle filters and rewards that several tests share."""

from __future__ import annotations

import torch

from fk_reward import FKSteeringConfig, ParticleFilter


def make_filter(num_groups=1, generator=None, filter_type=ParticleFilter, *, spread=None, **fields):
    fields = {"num_particles": 4, "potential": "difference", "reward_scale": 1.0, "ess_threshold": 0.5} | fields
    return filter_type(FKSteeringConfig(**fields), num_groups, generator, spread=spread)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_rewards(num_steps, size, *, seed=0):
    return torch.randn(num_steps, size, generator=torch.Generator().manual_seed(seed))


def run(particle_filter, rewards, weights=None):
    """Weigh and resample at each row but the last, which holds the final rewards; returns the ancestors of each step.

    The scoring steps have these weights, 1 if none are given.

    A reward follows its particle's slot, not its ancestry: the rows are what the particles in the slots get.
    """
    ancestors = []
    for row, weight in zip(rewards[:-1], weights or [1.0] * (len(rewards) - 1), strict=True):
        particle_filter.weigh(row, weight=weight)
        ancestors.append(particle_filter.resample())
    particle_filter.weigh(rewards[-1], final=True)
    return ancestors
