"""One dimension of a LLaVA-Reward as a module with one output, of which a small share of the weights is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from fk_reward.rewards.llava_reward.backbones.base import random_backbone
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.objective import Objective, find_objective

if TYPE_CHECKING:
    from typing_extensions import Self


_PREFIX = "network."


@dataclass(frozen=True)
class TrainableShare:
    """How much of a model is trained.

    Attributes:
        trained: number of weights that get a gradient.
        total: number of all weights, the trained ones among them.

    Example:
        >>> print(TrainableShare(trained=50, total=1_000))
        50 of 1,000 weights are trained (5.00 %)
    """

    trained: int
    total: int

    @property
    def share(self) -> float:
        """Trained weights in all weights, in [0, 1]."""
        return self.trained / self.total

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} weights are trained ({self.share:.2%})".replace("%", " %")


def trainable_share(model: nn.Module) -> TrainableShare:
    """Count a model's weights; it may be on the meta device.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 1, bias=False))
        >>> trainable_share(model)
        TrainableShare(trained=4, total=20)
    """
    weights = list(model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return TrainableShare(trained, sum(weight.numel() for weight in weights))


class TrainableReward(nn.Module):
    """A trainable dimension of a `LlavaRewardModel`, for `LlavaRewardTrainer`.

    `train()` puts only the language model of the backbone into training mode, for the dropout of its adapters and
    activation checkpointing; the vision tower stays in evaluation mode.

    Args:
        network: the backbone with its dimensions; all its other weights are frozen.
        key: the dimension, as attached.
        projector: whether the dimension's visual projector is trained.
    """

    def __init__(self, network: LlavaRewardModel, key: str, *, projector: bool = True) -> None:
        super().__init__()
        network.train_dimension(key, projector=projector)
        self.network = network
        self.key = key

    @property
    def reward_config(self) -> LlavaRewardConfig:
        """Configuration of the dimension."""
        return self.network.configs[self.key]

    @property
    def objective(self) -> Objective:
        """What the dimension is trained for."""
        return find_objective(self.reward_config.objective)

    def forward(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Read images and prompts.

        Args:
            images: B tensors (3, H, W) float32 in [0, 1], of any sizes.
            prompts: B strings.

        Returns:
            (B, d) float32, the head's raw output.
        """
        return self.network(images, prompts, [self.key])[0]

    def train(self, mode: bool = True) -> Self:
        """Put the language model into training mode, and nothing else of the backbone."""
        super().train(mode)
        # The rest is frozen: dropout there would only blur what the trained weights see.
        self.network.backbone.eval()
        self.network.backbone.language_model.train(mode)
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute the language model's activations in the backward pass; settings are transformers'."""
        self.network.backbone.language_model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """`activation_checkpointing_enable` under transformers' older name."""
        self.network.backbone.language_model.gradient_checkpointing_enable(**settings)

    def checkpoint(self, state_dict: Mapping[str, Tensor] | None = None) -> RewardCheckpoint:
        """The trained weights; taken from `state_dict` of this module if one was gathered from several processes."""
        if state_dict is not None:
            state_dict = {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
        return self.network.checkpoint(self.key, state_dict)

    def restore(self, checkpoint: RewardCheckpoint) -> None:
        """Copy a checkpoint's weights into the dimension.

        Raises:
            ValueError: when the checkpoint is of another reward.
        """
        self.network.restore(self.key, checkpoint)


def new_dimension(
    network: LlavaRewardModel,
    config: LlavaRewardConfig,
    *,
    lora_rank: int = 128,
    lora_alpha: float = 256,
    lora_dropout: float = 0.05,
    seed: int = 0,
) -> str:
    """Attach an untrained dimension: LoRA that changes nothing yet, the backbone's own projector, a random head.

    LoRA adapts all linear layers of the language model, and only of it. Its first matrix is Gaussian, its second zero,
    as in the official code.

    Args:
        network: what to attach it to.
        config: what the dimension is; its name, with "_" for dots, becomes the key, so it must be free.
        lora_rank: r; 0 for no LoRA.
        lora_alpha: scale of LoRA, divided by r.
        lora_dropout: share of LoRA's inputs that is dropped in training.
        seed: of LoRA and the head; the global generator is left as it was.

    Returns:
        The key in `network`.

    Raises:
        ValueError: when the dimension is attached already, or belongs to another backbone.
    """
    lora_config = (
        LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            init_lora_weights="gaussian",
            target_modules=list(network.adapters.linear_modules),
        )
        if lora_rank
        else None
    )
    # PEFT initialises from the global generator, which a trainer seeds by itself; on the CPU, whatever the devices.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        key = config.dimension.replace(".", "_")
        network.attach(key, RewardCheckpoint(config, lora_config, lora={}, projector={}, head={}))
    return key


def continued_dimension(network: LlavaRewardModel, config: LlavaRewardConfig, initial: RewardCheckpoint) -> str:
    """Attach a dimension that begins with the weights of another one.

    Args:
        network: what to attach it to.
        config: what the dimension is; objective, head, temperature and SkipCA are those of `initial`.
        initial: whose LoRA, projector and head are copied.

    Returns:
        The key in `network`.

    Raises:
        ValueError: when the dimension is attached already, or belongs to another backbone.
    """
    kept = {name: getattr(initial.config, name) for name in _OF_THE_HEAD}
    key = config.dimension.replace(".", "_")
    config = dataclasses.replace(config, **kept)
    network.attach(key, dataclasses.replace(initial, config=config))
    return key


_OF_THE_HEAD = ("objective", "value_head_dim", "cross_attention", "attends_to", "temperature")
"""Fields of a configuration without which its weights mean something else."""


def full_size_share(model_type: str, *, lora_rank: int = 128, cross_attention: bool = True) -> TrainableShare:
    """Count the trained weights of a LLaVA-Reward at the size of the official checkpoints.

    Nothing is downloaded and no memory is allocated: the model is built on the meta device. The backbone is counted
    without the language-model head, as it is used.

    Args:
        model_type: a name of `BACKBONES`.
        lora_rank: rank of LoRA.
        cross_attention: whether there is a SkipCA.

    Raises:
        ValueError: for another backbone.

    Example:
        >>> print(full_size_share("phi3_v"))  # doctest: +SKIP
    """
    with torch.device("meta"):
        network = LlavaRewardModel(random_backbone(model_type, full_size=True))
        config = LlavaRewardConfig(
            dimension="any", backbone=model_type, base_model=model_type, cross_attention=cross_attention
        )
        key = new_dimension(network, config, lora_rank=lora_rank)
    return trainable_share(TrainableReward(network, key))
