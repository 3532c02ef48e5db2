"""Random numbers of a search: generators of its own, a function of the state of the caller's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator


def resampling_generators(
    generator: Generator | Sequence[Generator] | None,
    num_groups: int,
    *,
    device: torch.device | str = "cpu",
    purpose: str = "",
) -> list[Generator]:
    """One generator on the CPU for each group, a function of the state of the caller's generators.

    Args:
        generator: as Diffusers pipelines take it: one, one for each image (prompt-major), or None for PyTorch's
            global one, that of the device.
        num_groups: number of prompts.
        device: where the pipeline draws its noise.
        purpose: what the numbers are for; those of different purposes are independent.

    Returns:
        One generator a prompt. With a list, a prompt's generator depends only on the first one of its own images, so
        that its result does not depend on the other prompts of the batch.

    Example:
        >>> first, second = resampling_generators(torch.Generator().manual_seed(0), 2)
        >>> first.initial_seed() == second.initial_seed()
        False
    """
    if isinstance(generator, Sequence):
        per_group = len(generator) // num_groups
        return [_derived(generator[group * per_group].get_state(), 0, purpose) for group in range(num_groups)]
    state = _global_state(torch.device(device)) if generator is None else generator.get_state()
    return [_derived(state, group, purpose) for group in range(num_groups)]


def _global_state(device: torch.device) -> torch.Tensor:
    """State of the global generator that the noise on this device comes from; each device has one of its own."""
    if device.type == "cpu":
        return torch.get_rng_state()
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def _derived(state: torch.Tensor, group: int, purpose: str) -> Generator:
    about = state.cpu().numpy().tobytes() + group.to_bytes(8, "little") + purpose.encode()
    digest = hashlib.sha256(about).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
