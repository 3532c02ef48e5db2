"""How different the pictures of one population are from one another."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_pairwise_distance(images: Tensor) -> float:
    """Mean over all pairs of the root mean square difference of their pixels.

    Args:
        images: `(K, 3, H, W)` in [0, 1], K at least 2.

    Returns:
        In [0, 1]; 0 when all are equal.

    Example:
        >>> mean_pairwise_distance(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8))
        0.6666666865348816
    """
    if len(images) < 2:
        raise ValueError(f"Distances need at least two images, got {len(images)}.")
    flat = images.flatten(1).float()
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
