"""From the raw outputs of one forward to logits and to the loss, for each objective."""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.general_preference import preference_logits
from fk_reward.training.losses import binary_loss, bradley_terry_loss, general_preference_loss


def is_pairwise(config: LlavaRewardConfig) -> bool:
    """Whether the objective compares images, and its data are pairs.

    Example:
        >>> is_pairwise(LlavaRewardConfig(dimension="safety", backbone="phi3_v", base_model="x", objective="binary"))
        False
    """
    return config.objective != "binary"


def items_of(outputs: Tensor, config: LlavaRewardConfig) -> Tensor:
    """Bring the outputs of one forward to one row an item of the data.

    Args:
        outputs: (2B, d), all chosen rows before all rejected ones, or (B, 1) for labelled images.
        config: the dimension's.

    Returns:
        (B, 2, d), chosen and rejected; or (B, 1, 1).

    Example:
        >>> config = LlavaRewardConfig(dimension="alignment", backbone="phi3_v", base_model="x")
        >>> items_of(torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]), config).squeeze(-1)
        tensor([[ 1., -1.],
                [ 2., -2.]])

    B: number of pairs or of labelled images, d: size of the reward's raw output.
    """
    return torch.stack(outputs.chunk(2), dim=1) if is_pairwise(config) else outputs.unsqueeze(1)


def objective_loss(items: Tensor, targets: Tensor | None, config: LlavaRewardConfig) -> Tensor:
    """The training loss.

    Args:
        items: (B, 2, d) or (B, 1, 1), as from `items_of`.
        targets: (B,) margins of the pairs in the unit of the reward, or None; for a binary objective (B,) labels.
        config: the dimension's.

    Returns:
        Scalar.

    Raises:
        ValueError: for margins on a general preference, or a binary objective without labels.

    Example:
        >>> config = LlavaRewardConfig(dimension="alignment", backbone="phi3_v", base_model="x", temperature=1.0)
        >>> objective_loss(torch.tensor([[[0.0], [0.0]]]), None, config)
        tensor(0.6931)

    B: number of pairs or of labelled images, d: size of the reward's raw output.
    """
    if config.objective == "binary":
        if targets is None:
            raise ValueError("A binary objective needs labelled images, got pairs.")
        return binary_loss(items.flatten(), targets)
    chosen, rejected = items.unbind(dim=1)
    if config.objective == "general-preference":
        if targets is not None:
            raise ValueError("Margins are for the Bradley-Terry objective; set margin_scale to 0.")
        return general_preference_loss(chosen, rejected, temperature=config.temperature)
    return bradley_terry_loss(chosen.squeeze(1), rejected.squeeze(1), temperature=config.temperature, margin=targets)


def objective_logits(items: Tensor, config: LlavaRewardConfig) -> Tensor:
    """Logits of the model's answers: that the chosen image wins, or that the label is 1.

    Args:
        items: (B, 2, d) or (B, 1, 1), as from `items_of`.
        config: the dimension's.

    Returns:
        (B,).

    Example:
        >>> config = LlavaRewardConfig(dimension="alignment", backbone="phi3_v", base_model="x", temperature=0.5)
        >>> objective_logits(torch.tensor([[[1.0], [0.0]]]), config)
        tensor([2.])

    B: number of pairs or of labelled images, d: size of the reward's raw output.
    """
    if config.objective == "binary":
        return items.flatten()
    chosen, rejected = items.unbind(dim=1)
    if config.objective == "general-preference":
        return preference_logits(chosen, rejected, temperature=config.temperature)
    return (chosen - rejected).squeeze(1) / config.temperature
