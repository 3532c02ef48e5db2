"""A short digest of weights, by which results of a retrained model are told from those of its predecessor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def weights_digest(modules: Iterable[nn.Module]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all parameters and buffers, names and order included.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> weights_digest([one]) == weights_digest([one]), weights_digest([one]) == weights_digest([other])
        (True, False)
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
