"""A LLaVA-Reward with random dimensions on a random backbone, for measuring speed and memory without weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig

from fk_reward.rewards.llava_reward.backbones.base import backbone_spec, random_backbone
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
from fk_reward.rewards.llava_reward.model import LlavaRewardModel

DIMENSIONS = ("alignment", "fidelity", "safety")

_FULL_RANK, _TINY_RANK = 128, 8  # 128 is that of the official checkpoints


def random_reward(  # noqa: PLR0913 (what a model is made from)
    backbone: str,
    *,
    full_size: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    num_crops: int | None = None,
    dimensions: Sequence[str] = DIMENSIONS,
    seed: int = 0,
) -> LlavaReward:
    """Make the reward directly on the device; LoRA, projector and head of each dimension are random, too.

    As in the official checkpoints LoRA is on all linear layers of the language model, of rank 128 at full size, and
    there is a SkipCA but with LLaVA-NeXT. Of the weights only the heads are in float32 whatever the dtype.

    Args:
        backbone: a name of `BACKBONES`.
        full_size: as for `random_backbone`.
        dtype: floating, of the backbone and of LoRA.
        device: "meta" makes all of it but the numbers.
        num_crops: as for `random_backbone`.
        dimensions: their names.
        seed: of the weights.

    Example:
        >>> reward = random_reward("phi3_v", num_crops=1)
        >>> sorted(reward.score_dimensions(torch.rand(1, 3, 32, 32), ["a cat"]))
        ['alignment', 'fidelity', 'safety']
    """
    device = torch.device(device)
    with seeded_on(device, seed), default_dtype(dtype):
        model = LlavaRewardModel(random_backbone(backbone, full_size=full_size, num_crops=num_crops))
        lora_config = _lora_config(model.adapters.linear_modules, rank=_FULL_RANK if full_size else _TINY_RANK)
        for dimension in dimensions:
            model.attach(dimension, _untrained(dimension, backbone, lora_config))
    return LlavaReward(model, {dimension: dimension for dimension in dimensions})


def weight_sizes(backbone: str, *, full_size: bool, dtype: torch.dtype) -> tuple[int, int]:
    """Number of parameters of `random_reward` and the bytes that they take, without making them.

    Example:
        >>> count, size = weight_sizes("phi3_v", full_size=False, dtype=torch.bfloat16)
        >>> 2 * count < size < 4 * count
        True
    """
    reward = random_reward(backbone, full_size=full_size, dtype=dtype, device="meta")
    parameters = list(reward.model.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def _lora_config(modules: Sequence[str], *, rank: int) -> LoraConfig:
    """`init_lora_weights=False` leaves both of LoRA's matrices random, so that it changes states."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), init_lora_weights=False)


def _untrained(dimension: str, backbone: str, lora_config: LoraConfig) -> RewardCheckpoint:
    """A dimension without weights: they are drawn when it is attached."""
    official = backbone_spec(backbone).official
    skip_ca = official is None or official.attends_to is not None
    config = LlavaRewardConfig(dimension=dimension, backbone=backbone, base_model="random", cross_attention=skip_ca)
    return RewardCheckpoint(config, lora_config, lora={}, projector={}, head={})


@contextmanager
def seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    """Make new tensors on a device, from a seed; the global random state is put back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors in a floating dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
