"""Running models without the numbers of their weights, and counting floating-point operations so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fk_reward.rewards import Reward

_META = torch.device("meta")


class HollowTensors(TorchDispatchMode):
    """Lets tensors of shapes alone ("meta") meet tensors with numbers.

    What depends on a weight or a picture has a shape and no numbers. Everything else (tokens, masks, positions,
    which code asks for its numbers) stays on the CPU, even where it is made on or moved to the meta device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = dict(kwargs or {})
        if not any(leaf.device == _META for leaf in tree_leaves((args, values)) if isinstance(leaf, Tensor)):
            if values.get("device") is not None and torch.device(values["device"]) == _META:
                values["device"] = torch.device("cpu")
            return func(*args, **values)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        args, values = tree_map_only(Tensor, _hollow, (args, values))
        return func(*args, **values)


def _hollow(tensor: Tensor) -> Tensor:
    return tensor if tensor.device == _META else torch.empty_like(tensor, device=_META)


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places where they are true: their number decides the shape of what is picked."""
    places: list[Tensor | None] = []
    for index in indices:
        places += index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index]
    return places


def count_flops(reward: Reward, image_size: int, prompt: str) -> int:
    """Floating-point operations of scoring one image: two for each product that a matrix product adds up.

    Matrix products, convolutions and attention are counted, as `torch.utils.flop_counter` does; attention as if none of
    it were masked. Nothing is computed: for the time being the weights are replaced by their shapes.

    Args:
        reward: one whose `score` is a forward pass, on any device.
        image_size: side of the square image in pixels.
        prompt: its prompt; the number of its tokens counts.

    Raises:
        NotImplementedError: from PyTorch, when a number is read that depends on a weight or on the image.

    Example:
        >>> from fk_reward.rewards import CallableReward
        >>> layer = torch.nn.Linear(12, 5)
        >>> reward = CallableReward(lambda images, prompts: layer(images.flatten(1)).sum(dim=1), "layer")
        >>> reward.layer = layer  # what a reward holds is found
        >>> count_flops(reward, 2, "a cat")
        120
    """
    image = torch.empty(1, 3, image_size, image_size, device=_META)
    with without_weights(reward), torch.no_grad(), FlopCounterMode(display=False) as counter, HollowTensors():
        reward.score(image, [prompt])
    return counter.get_total_flops()


@contextmanager
def without_weights(reward: Reward) -> Iterator[None]:
    """The reward on the meta device; its tensors are put back afterwards, since other rewards may share them."""
    modules = [module for held in reward._held_modules() for module in held.modules()]
    saved = [(module, dict(module._parameters), dict(module._buffers)) for module in modules]
    reward.to("meta")
    try:
        yield
    finally:
        for module, parameters, buffers in saved:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
