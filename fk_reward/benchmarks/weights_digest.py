"""A short digest of weights, by which results of a retrained model are told from those of its predecessor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fk_reward.rewards import Reward


def weights_digest(holders: Iterable[Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights, names and order included.

    Args:
        holders: modules and rewards, as `held_weights` takes them.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> weights_digest([one]) == weights_digest([one]), weights_digest([one]) == weights_digest([other])
        (True, False)
    """
    digest = hashlib.sha256()
    for holder in holders:
        for name, tensor in held_weights(holder):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def held_weights(holder: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module, or of all modules that a reward holds, however deep in rewards, lists and dicts.

    Of a LLaVA-Reward only the backbone and the active dimension count, so that the digest does not change with what
    other rewards have put onto the same backbone.

    Args:
        holder: module, reward, list, tuple, mapping or dataclass; anything else holds no weights.

    Example:
        >>> [name for name, _ in held_weights({"part": [nn.Linear(1, 1), 0.5]})]
        ['weight', 'bias']
    """
    from fk_reward.rewards.llava_reward.llava_reward import LlavaReward

    if isinstance(holder, nn.Module):
        yield from holder.state_dict().items()
    elif isinstance(holder, LlavaReward):
        yield from _llava_weights(holder)
    else:
        for part in _parts(holder):
            yield from held_weights(part)


def _parts(holder: Any) -> Iterable[Any]:
    if isinstance(holder, Mapping):
        return holder.values()
    if isinstance(holder, Reward) or (is_dataclass(holder) and not isinstance(holder, type)):
        return vars(holder).values()
    return holder if isinstance(holder, list | tuple) else ()


def _llava_weights(reward: Any) -> Iterator[tuple[str, Tensor]]:
    """The backbone as it is without adapters, and the checkpoint of the active dimension."""
    for name, tensor in reward.model.backbone.state_dict().items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
    key = next(key for key, config in reward.model.configs.items() if config is reward.config)
    checkpoint = reward.model.checkpoint(key)
    for part in ("lora", "projector", "head"):
        yield from getattr(checkpoint, part).items()
