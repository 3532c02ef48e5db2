"""Adapters of LLaVA-Reward merged into one: an `overall` from alignment, fidelity and safety, without training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint, load_own_checkpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.training.skills.adapter_files import equal_weights
from fk_reward.training.skills.low_rank import LowRank, merge_updates


def merge_rewards(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    dimension: str = "overall",
) -> Path:
    """Merge dimensions of LLaVA-Reward on one backbone into one: one forward instead of one for each.

    LoRA is merged as that of skill experts (`merge_updates`); projector and head, which are no updates, are averaged
    with the same weights, divided by their sum. An experiment: a head reads states that its own adapter has made, and
    reads the sum of the updates worse. Compare with the composition of the scores ("0.5*a + 0.5*b"), which is exact.

    Args:
        sources: folders of checkpoints as `fk-reward train` writes them.
        folder: where the merged checkpoint goes.
        weights: one for each; None for 1 / n.
        rank: of the merged LoRA; None for the exact sum.
        dimension: name of the merged one.

    Returns:
        The folder, which `load_reward("llava-reward", adapter=folder)` reads.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: when a checkpoint is missing.
        ValueError: for checkpoints that differ in backbone, objective or head, only some of which have LoRA or a
            projector, and for weights whose sum is not positive.
    """
    checkpoints = [load_own_checkpoint(source) for source in sources]
    weights = equal_weights(len(checkpoints)) if weights is None else list(weights)
    config = _shared_config(checkpoints, sources, dimension)
    layers = merge_updates([_layers(checkpoint) for checkpoint in checkpoints], weights, rank=rank)
    merged = RewardCheckpoint(
        config,
        _lora_config(layers),
        {f"{name}.lora_{key}.weight": part for name, layer in layers.items() for key, part in _factors(layer)},
        _average([checkpoint.projector for checkpoint in checkpoints], weights, what="projector"),
        _average([checkpoint.head for checkpoint in checkpoints], weights, what="head"),
    )
    return merged.save(folder)


def _layers(checkpoint: RewardCheckpoint) -> dict[str, LowRank]:
    config = checkpoint.lora_config
    if config is None:
        raise ValueError(f"The dimension {checkpoint.config.dimension!r} has no LoRA to merge.")
    if config.rank_pattern or config.alpha_pattern:
        raise ValueError(f"The LoRA of {checkpoint.config.dimension!r} has patterns of ranks or alphas: not supported.")
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    lora = checkpoint.lora
    return {
        name: LowRank(lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"], scale=scale)
        for name in checkpoint.lora_modules
    }


def _factors(layer: LowRank) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return ("A", layer.a), ("B", layer.b)


def _lora_config(layers: Mapping[str, LowRank]) -> LoraConfig:
    rank = next(iter(layers.values())).rank
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(layers))


def _shared_config(
    checkpoints: Sequence[RewardCheckpoint], sources: Sequence[str | os.PathLike[str]], dimension: str
) -> LlavaRewardConfig:
    """What all have in common, under the new name."""
    first = dataclasses.replace(checkpoints[0].config, dimension=dimension)
    for checkpoint, source in zip(checkpoints, sources, strict=True):
        other = dataclasses.replace(checkpoint.config, dimension=dimension)
        for name, value in other.to_dict().items():
            if value != first.to_dict()[name]:
                raise ValueError(
                    f"{os.fspath(source)} has {name}={value!r}, {os.fspath(sources[0])} has "
                    f"{first.to_dict()[name]!r}: only dimensions of one backbone and one kind can be merged."
                )
    return first


def _average(parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float], *, what: str) -> dict[str, Tensor]:
    total = sum(weights)
    if total <= 0:
        raise ValueError(f"The {what} is averaged: the weights must have a positive sum, got {list(weights)}.")
    if len({tuple(sorted(part)) for part in parts}) > 1:
        raise ValueError(f"Only some of the checkpoints have a {what} of their own, or theirs differ in their layers.")
    return {name: _mean([part[name] for part in parts], [weight / total for weight in weights]) for name in parts[0]}


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    mean = torch.stack([share * tensor.double() for share, tensor in zip(shares, tensors, strict=True)]).sum(dim=0)
    return mean.to(tensors[0].dtype)
