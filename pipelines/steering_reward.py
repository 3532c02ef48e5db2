"""The reward of a steered pipeline: loaded, checked, and put on a device of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fk_reward.rewards import Reward, load_reward


def steering_reward(reward: str | Reward | Callable[[Tensor, list[str]], Tensor]) -> Reward:
    """Load a reward as `load_reward` does.

    Raises:
        ValueError: for one of which lower is better.

    Example:
        >>> steering_reward(lambda images, prompts: images.mean(dim=(1, 2, 3))).device is None
        True
    """
    loaded = load_reward(reward)
    if not loaded.card.higher_is_better:
        raise ValueError(
            f"Of reward {loaded.card.name!r} lower is better, and steering looks for the highest: write a minus before "
            "it, in the name or before the object."
        )
    return loaded


def reward_place(device: str | torch.device | None) -> torch.device | None:
    """The device that a reward is to be put on; None for the pipeline's.

    Raises:
        ValueError: for a name that is none, or a device that is not there.

    Example:
        >>> reward_place("cpu")
        device(type='cpu')
        >>> reward_place("gpu")
        Traceback (most recent call last):
        ValueError: reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got ...
    """
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got "
            f"{str(device)!r}: {reason}"
        ) from error


def put_on(reward: Reward | None, device: torch.device | None) -> None:
    """Move a reward to a device; nothing where one of the two is not there.

    Example:
        >>> put_on(None, torch.device("cpu"))
    """
    if reward is not None and device is not None:
        reward.to(device)
