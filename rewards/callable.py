"""Any function of images and prompts as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fk_reward.rewards.base import Reward
from fk_reward.rewards.card import RewardCard


class CallableReward(Reward):
    """Wrap a function `(images, prompts) -> scores` so that it gets a reward's checks, conversions and batches.

    Args:
        fn: takes images (B, 3, H, W) float32 in [0, 1], a copy that it may write to, and B prompts; returns (B,)
            floating scores, higher is better, `-inf` for an image that is forbidden. Where it is a `torch.nn.Module`,
            `to` moves it and the images follow; otherwise the images come on the device they were passed on.
        name: name in messages and traces; the function's own by default.
        batch_size: number of images that `fn` sees at once; None for all images of one size.

    Raises:
        TypeError: when `fn` is no function of images and prompts.

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
        if not callable(fn) or isinstance(fn, type):
            got = f"the class {fn.__name__}; pass an instance of it" if isinstance(fn, type) else type(fn).__name__
            raise TypeError(f"CallableReward needs a function (images, prompts) -> (B,) tensor, got {got}.")
        _check_parameters(fn)
        self.fn = fn
        self.batch_size = batch_size
        own_name = str(getattr(fn, "__name__", type(fn).__name__))
        self.card = RewardCard(name=name or own_name, summary="a function given by the caller")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Call the function; shapes as in `Reward.score`."""
        return self.fn(images, prompts)


def _check_parameters(fn: Callable[..., Any]) -> None:
    """Raise for a function that cannot be called with images and prompts; one without a signature is believed."""
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind("images", "prompts")
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"A reward is called as fn(images, prompts), and {name}{signature} cannot be: {error}. "
            "Write a function of these two, which may leave prompts unread."
        ) from error
