"""One dimension of a LLaVA-Reward as a trainer sees it: a module with one output, of which little is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel

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
    """A dimension of a `LlavaRewardModel`, made trainable; what `LlavaRewardTrainer` trains.

    In training mode only the language model is: its adapters drop out and its layers may be recomputed, while the
    vision tower stays in evaluation mode.

    Args:
        network: the backbone with its dimensions; all other weights of it are frozen.
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
        self.network.backbone.eval()
        self.network.backbone.language_model.train(mode)
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute the language model's activations in the backward pass; settings are transformers'."""
        self.network.backbone.language_model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """The same by the name that transformers used first."""
        self.network.backbone.language_model.gradient_checkpointing_enable(**settings)

    def checkpoint(self, state_dict: Mapping[str, Tensor] | None = None) -> RewardCheckpoint:
        """The trained weights; from this module's `state_dict`, where one was gathered from several processes."""
        if state_dict is not None:
            state_dict = {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
        return self.network.checkpoint(self.key, state_dict)

    def restore(self, checkpoint: RewardCheckpoint) -> None:
        """Put a checkpoint's weights into the dimension.

        Raises:
            ValueError: when it is the checkpoint of something else.
        """
        self.network.restore(self.key, checkpoint)
