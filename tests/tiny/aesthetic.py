"""Heads of LAION's aesthetic predictors with random weights, in the layouts of the published files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def official_mlp(width: int, *, seed: int = 0) -> nn.Sequential:
    """The five linear layers and three dropouts of improved-aesthetic-predictor, in evaluation mode."""
    layers = (nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64))
    mlp = nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return mlp


def mlp_tensors(width: int, *, seed: int = 0) -> dict[str, Tensor]:
    return {f"layers.{name}": tensor for name, tensor in official_mlp(width, seed=seed).state_dict().items()}


def write_head(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, path)
    return path
