"""This process's share of a call whose particles are spread over processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fk_reward.rewards import Reward
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.process_link import ProcessLink
from fk_reward.sampling.trace import Provenance
from fk_reward.search.base import Population, can_resize


def call_link(*, spread: bool) -> AbstractContextManager[ProcessLink | None]:
    """The link to the other processes for one call, which ends theirs when its body fails; None for one process."""
    if not spread:
        return nullcontext()
    from accelerate import PartialState  # noqa: PLC0415 (slow to import, and one process does not need it)

    state = PartialState()
    if state.num_processes == 1:
        return nullcontext()
    return ProcessLink(shared_store(), state.process_index, state.num_processes)


def shared_store() -> Any:
    """The key-value store through which the processes of `accelerate launch` have found one another."""
    from torch.distributed import distributed_c10d  # noqa: PLC0415 (as above)

    return distributed_c10d._get_default_store()  # PyTorch has no public name for it


def find_exchange(population: Population, *, link: ProcessLink | None, reward: Reward) -> ParticleExchange:
    """The place of this process: the only one, or one of those that `accelerate launch` started.

    Raises:
        ValueError: for particles that cannot be shared evenly, for settings that leave fewer and fewer of them, and for
            a reward that compares them with one another.
    """
    sizes: dict[str, Any] = {"num_groups": population.num_groups, "num_particles": population.num_particles}
    if link is None:
        return ParticleExchange(**sizes)
    if can_resize(population):
        raise ValueError(
            "final_particles does not go with spread=True, nor does any other search that changes the number of "
            "particles: they are shared out evenly. Leave one."
        )
    if reward.compares_images:
        raise ValueError(
            f"Reward {reward.card.name!r} compares the images of a prompt with one another, and spread=True puts them "
            "into several processes. Use a reward that scores single images, or spread=False."
        )
    return ParticleExchange(**sizes, num_processes=link.num_processes, process=link.process, link=link)


def call_identity(provenance: Provenance, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What has to be the same in all processes that share a call.

    Args:
        provenance: of the call.
        arguments: all arguments of the wrapped pipeline's call. Of tensors the shape counts: embeddings that each
            process computes itself differ in the last bits. Of generators the state does.
        **more: what else is part of the call.
    """
    generators = arguments.get("generator")
    states = [one.get_state() for one in generators] if isinstance(generators, list) else []
    others = {
        name: value for name, value in arguments.items() if value is not None and name not in provenance.arguments
    }
    return {
        **asdict(provenance),
        **more,
        "generator states": hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest(),
        "other arguments": {
            name: f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            for name, value in others.items()
        },
    }


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
