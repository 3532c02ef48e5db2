"""This process's share of a call whose particles are spread over processes."""

from __future__ import annotations

from typing import Any

import torch

from fk_reward.config import FKSteeringConfig
from fk_reward.particle_exchange import ParticleExchange
from fk_reward.rewards import Reward


def find_exchange(config: FKSteeringConfig, num_groups: int, *, spread: bool, reward: Reward) -> ParticleExchange:
    """The place of this process: the only one, or one of those that `accelerate launch` started.

    Raises:
        ValueError: for particles that cannot be shared evenly, and for a reward that compares them with one another.
    """
    sizes = {"num_groups": num_groups, "num_particles": config.num_particles}
    if not spread:
        return ParticleExchange(**sizes)
    from accelerate import PartialState  # noqa: PLC0415 (slow to import, and one process does not need it)

    state = PartialState()
    if state.num_processes > 1 and reward.compares_images:
        raise ValueError(
            f"Reward {reward.card.name!r} compares the images of a prompt with one another, and spread=True puts them "
            "into several processes. Use a reward that scores single images, or spread=False."
        )
    return ParticleExchange(**sizes, num_processes=state.num_processes, process=state.process_index)


def own_arguments(arguments: dict[str, Any], exchange: ParticleExchange) -> dict[str, Any]:
    """The arguments of the wrapped pipeline with `generator` and `latents` cut down to this process's particles.

    Raises:
        ValueError: in several processes without a generator for each particle. One generator gives numbers that
            depend on the size of the batch, and the result would depend on the number of processes.

    Example:
        >>> exchange = ParticleExchange(num_groups=1, num_particles=4, num_processes=2, process=1)
        >>> own_arguments({"generator": ["a", "b", "c", "d"], "eta": 1.0}, exchange)
        {'generator': ['c', 'd'], 'eta': 1.0}
    """
    if exchange.num_processes == 1:
        return arguments
    generators, total = arguments.get("generator"), exchange.num_groups * exchange.num_particles
    if not isinstance(generators, list | tuple) or len(generators) != total:
        got = f"{len(generators)}" if isinstance(generators, list | tuple) else type(generators).__name__
        raise ValueError(
            f"With particles in {exchange.num_processes} processes, generator should be a list of {total} generators, "
            f"one for each particle, seeded alike in every process; got {got}."
        )
    own = exchange.own(torch.arange(total)).tolist()
    latents = arguments.get("latents")
    share = {"generator": [generators[i] for i in own]} | (
        {} if latents is None else {"latents": exchange.own(latents)}
    )
    return arguments | share
