"""Losses of the reward's three objectives, as plain functions of its raw outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fk_reward.rewards.llava_reward.general_preference import preference_logits


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, temperature: float = 0.1, margin: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood that the chosen rows win: -mean log sigmoid((chosen - rejected - margin) / temperature).

    Bradley and Terry 1952, with the temperature of LLaVA-Reward (arXiv 2507.21391, section 3) and the margin where its
    official loss has it: subtracted from the difference of rewards *before* the division, so in the unit of the reward.

    Args:
        chosen: (B,) rewards of the preferred rows.
        rejected: (B,) rewards of the others.
        temperature: positive.
        margin: (B,) by how much a chosen row should lead, not negative; None for 0.

    Returns:
        Scalar, at least 0; computed in float32 at least, and finite for any finite rewards that float32 can hold
        after the division.

    Raises:
        ValueError: for shapes other than these, or a temperature that is not positive.

    Example:
        >>> loss = bradley_terry_loss(torch.tensor([0.1]), torch.tensor([0.0]), temperature=0.1)
        >>> f"{loss.item():.4f}"  # log(1 + exp(-1))
        '0.3133'

    B: number of pairs.
    """
    _check_vectors(chosen=chosen, rejected=rejected, margin=chosen if margin is None else margin)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    lead = _at_least_float32(chosen) - _at_least_float32(rejected)
    if margin is not None:
        lead = lead - margin
    return -functional.logsigmoid(lead / temperature).mean()


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a yes or no: -mean log sigmoid(logit) where the label is 1, log sigmoid(-logit) where it is 0.

    The loss of LLaVA-Reward's safety reward (arXiv 2507.21391, section 3), without a temperature.

    Args:
        logits: (B,) raw outputs; above 0 says yes.
        labels: (B,) bool, integer or floating, each 0 or 1; 1 is what the reward should like ("safe").

    Returns:
        Scalar, at least 0; computed in float32 at least.

    Raises:
        ValueError: for other shapes, or labels other than 0 and 1.

    Example:
        >>> loss = binary_loss(torch.tensor([0.0, 2.0]), torch.tensor([True, True]))
        >>> f"{loss.item():.4f}"  # (log 2 + log(1 + exp(-2))) / 2
        '0.4100'

    B: number of images.
    """
    _check_vectors(logits=logits, labels=labels)
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()))}.")
    logits = _at_least_float32(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits))


def general_preference_loss(chosen: Tensor, rejected: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Negative log-likelihood that the chosen rows win by a general preference: -mean log sigmoid(s(chosen, rejected)).

    The General Preference Model of Zhang et al. 2024 (arXiv 2410.02197); `preference_logits` is s, divided
    by the temperature already.

    Args:
        chosen: (B, d) vectors of the preferred rows.
        rejected: (B, d) vectors of the others.
        temperature: positive.

    Returns:
        Scalar, at least 0; computed in float32 at least.

    Raises:
        ValueError: for other shapes, an odd d, or a temperature that is not positive.

    Example:
        >>> loss = general_preference_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0)
        >>> f"{loss.item():.4f}"  # log(1 + exp(-1))
        '0.3133'

    B: number of pairs, d: even size of the vectors.
    """
    chosen, rejected = _at_least_float32(chosen), _at_least_float32(rejected)
    logits = preference_logits(chosen, rejected, temperature=temperature)
    if not len(logits):
        raise ValueError("chosen and rejected are empty: a loss needs at least one pair.")
    return -functional.logsigmoid(logits).mean()


def _check_vectors(**vectors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in vectors.items()}
    if any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"Expected tensors of one shape (B,) with B at least 1, got {shapes}.")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
