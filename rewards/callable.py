"""Any function of images and prompts as a reward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fk_reward.rewards.base import Reward
from fk_reward.rewards.card import RewardCard


class CallableReward(Reward):
    """Wrap a function `(images, prompts) -> scores` so that it gets a reward's checks, conversions and batches.

    Args:
        fn: takes images (B, 3, H, W) float32 in [0, 1] and B prompts; returns (B,) floating scores, higher is
            better. Where it is a `torch.nn.Module`, `to` moves it and the images follow; otherwise the images
            come on the device they were passed on.
        name: name in messages and traces; the function's own by default.
        batch_size: number of images that `fn` sees at once; None for all images of one size.

    Raises:
        TypeError: when `fn` cannot be called.

    Example:
        >>> import torch
        >>> brightness = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "brightness")
        >>> brightness(torch.ones(2, 3, 4, 4), "a bright picture")
        tensor([1., 1.])

    B: number of images, H: height, W: width.
    """

    def __init__(
        self, fn: Callable[[Tensor, list[str]], Tensor], name: str | None = None, *, batch_size: int | None = None
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"CallableReward needs a function (images, prompts) -> (B,) tensor, got {type(fn).__name__}."
            )
        self.fn = fn
        self.batch_size = batch_size
        own_name = str(getattr(fn, "__name__", type(fn).__name__))
        self.card = RewardCard(name=name or own_name, summary="a function given by the caller")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Call the function; shapes as in `Reward.score`."""
        return self.fn(images, prompts)
