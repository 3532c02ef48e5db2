"""Sums of low-rank updates, and where they differ from sums of their factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fk_reward.value_checks import real_number, whole_number


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class LowRank:
    """The update of one layer by LoRA: scale * B A.

    Attributes:
        a: (r, I), or (r, I, k, k) of a convolution.
        b: (O, r), or (O, r, 1, 1).
        scale: alpha / r, or alpha / sqrt(r) with `use_rslora`.

    Raises:
        ValueError: when the ranks of the two differ.

    Example:
        >>> LowRank(torch.ones(2, 3), torch.ones(4, 2), scale=0.5).delta()[0]
        tensor([1., 1., 1.])

    r: rank, I and O: numbers of inputs and outputs.
    """

    a: Tensor
    b: Tensor
    scale: float

    def __post_init__(self) -> None:
        if self.a.ndim < 2 or self.b.ndim != self.a.ndim or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(f"A {tuple(self.a.shape)} and B {tuple(self.b.shape)} are not the factors of one update.")

    @property
    def rank(self) -> int:
        """Rank r of the factors."""
        return self.a.shape[0]

    @property
    def sizes(self) -> tuple[tuple[int, ...], int]:
        """What an update that is added to this one must share: the shape of an input row, and the outputs."""
        return tuple(self.a.shape[1:]), self.b.shape[0]

    def delta(self) -> Tensor:
        """The update itself, (O, I) or (O, I, k, k), in float32."""
        product = self.b.float().flatten(1) @ self.a.float().flatten(1)
        return self.scale * product.reshape(self.b.shape[0], *self.a.shape[1:])


def merge_updates(
    experts: Sequence[Mapping[str, LowRank]], weights: Sequence[float], *, rank: int | None = None
) -> dict[str, LowRank]:
    """Add the updates of several adapters: sum_i w_i scale_i B_i A_i in every layer.

    The factors are put side by side, as PEFT's `combination_type="cat"` does: A = [A_1; A_2; ...] and
    B = [w_1 scale_1 B_1, w_2 scale_2 B_2, ...], so that B A is the sum exactly; its rank is the sum of the ranks, its
    scale is 1. Averages of the factors (`combination_type="linear"`) have cross terms B_i A_j, which no expert has
    learned.

    Args:
        experts: for each adapter its layers. A layer that an adapter lacks adds nothing there.
        weights: w_i, one for each adapter; any numbers.
        rank: of the result: the nearest one of that rank in the Frobenius norm (a truncated singular value
            decomposition); None for the exact sum.

    Returns:
        The layers, of one rank and of scale 1, in the dtype of the first expert that has the layer. Layers that not
        all experts have are filled up with zeros: readers of adapters differ in what they make of two ranks.

    Raises:
        ValueError: when there is nothing to merge, the numbers of adapters and weights differ, a weight is not finite,
            or two layers of one name have different sizes.

    Example:
        >>> expert = {"layer": LowRank(torch.ones(1, 2), torch.ones(2, 1), scale=2.0)}
        >>> merge_updates([expert, expert], [0.5, 1.0])["layer"].delta()
        tensor([[3., 3.],
                [3., 3.]])
    """
    _check(experts, weights)
    names = dict.fromkeys(name for expert in experts for name in expert)  # in the order of the first
    merged = {}
    for name in names:
        parts = [(weight, expert[name]) for weight, expert in zip(weights, experts, strict=True) if name in expert]
        merged[name] = _sum(name, parts)
    if rank is not None:
        whole_number("rank", rank, minimum=1)
        merged = {name: nearest(layer, rank) for name, layer in merged.items()}
    return _of_one_rank(merged)


def nearest(layer: LowRank, rank: int) -> LowRank:
    """The update of at most a rank that is nearest in the Frobenius norm; its scale is 1.

    Args:
        layer: any update.
        rank: at least 1; where it is no less than that of the layer, the update stays as it is.

    Example:
        >>> layer = LowRank(torch.eye(3), torch.diag(torch.tensor([3.0, 2.0, 1.0])), scale=1.0)
        >>> (nearest(layer, 2).delta() - torch.diag(torch.tensor([3.0, 2.0, 0.0]))).abs().max() < 1e-5
        tensor(True)
    """
    if rank >= layer.rank:
        return layer
    dtype, left, right = layer.a.dtype, layer.b.double().flatten(1), layer.a.double().flatten(1)
    # The product may be thousands wide, its factors are thin: decompose the small middle of two QR decompositions.
    outer, small_b = torch.linalg.qr(left)
    inner, small_a = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(layer.scale * small_b @ small_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    b, a = outer @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ inner.T
    shape = (-1, rank, *layer.b.shape[2:])
    return LowRank(a.reshape(rank, *layer.a.shape[1:]).to(dtype), b.reshape(shape).to(dtype), scale=1.0)


def lost_share(whole: Mapping[str, LowRank], kept: Mapping[str, LowRank]) -> float:
    """How much of a sum a truncation has lost: the norm of the difference by that of the sum, over all layers.

    Example:
        >>> layer = LowRank(torch.eye(2), torch.diag(torch.tensor([4.0, 3.0])), scale=1.0)
        >>> round(lost_share({"layer": layer}, {"layer": nearest(layer, 1)}), 6)
        0.6
    """
    square = sum(float(layer.delta().square().sum()) for layer in whole.values())
    off = sum(float((layer.delta() - kept[name].delta()).square().sum()) for name, layer in whole.items())
    return math.sqrt(off / square) if square else 0.0


def _check(experts: Sequence[Mapping[str, LowRank]], weights: Sequence[float]) -> None:
    if not experts or not any(experts):
        raise ValueError("There is nothing to merge: no adapter with a layer.")
    if len(weights) != len(experts):
        raise ValueError(f"Expected a weight for each of the {len(experts)} adapters, got {len(weights)}.")
    for weight in weights:
        real_number("weight", weight)


def _sum(name: str, parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    sizes = {layer.sizes for _, layer in parts}
    if len(sizes) > 1:
        raise ValueError(f"{name} has different sizes in the adapters, {sorted(sizes)}: are they of one base model?")
    dtype = parts[0][1].a.dtype
    a = torch.cat([layer.a.float() for _, layer in parts])
    b = torch.cat([weight * layer.scale * layer.b.float() for weight, layer in parts], dim=1)
    return LowRank(a.to(dtype), b.to(dtype), scale=1.0)


def _of_one_rank(layers: Mapping[str, LowRank]) -> dict[str, LowRank]:
    rank = max(layer.rank for layer in layers.values())
    return {name: layer if layer.rank == rank else _filled(layer, rank) for name, layer in layers.items()}


def _filled(layer: LowRank, rank: int) -> LowRank:
    missing = rank - layer.rank
    a = torch.cat([layer.a, layer.a.new_zeros(missing, *layer.a.shape[1:])])
    b = torch.cat([layer.b, layer.b.new_zeros(layer.b.shape[0], missing, *layer.b.shape[2:])], dim=1)
    return LowRank(a, b, scale=layer.scale)
