"""The Bradley-Terry objective: a scalar reward, whose differences are the log-odds of a preference."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fk_reward.rewards.llava_reward.objective import Objective, at_least_float32, check_vectors


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
        >>> import torch
        >>> loss = bradley_terry_loss(torch.tensor([0.1]), torch.tensor([0.0]), temperature=0.1)
        >>> f"{loss.item():.4f}"  # log(1 + exp(-1))
        '0.3133'

    B: number of pairs.
    """
    check_vectors(chosen=chosen, rejected=rejected, margin=chosen if margin is None else margin)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    lead = at_least_float32(chosen) - at_least_float32(rejected)
    if margin is not None:
        lead = lead - margin
    return -functional.logsigmoid(lead / temperature).mean()


class BradleyTerry(Objective):
    """A scalar reward, trained on pairs, with or without margins.

    Example:
        >>> import torch
        >>> BRADLEY_TERRY.logits(torch.tensor([[[1.0], [0.0]]]), temperature=0.5)
        tensor([2.])
    """

    name = "bradley-terry"

    def loss(self, items: Tensor, targets: Tensor | None, *, temperature: float) -> Tensor:
        """`bradley_terry_loss` with `targets` as margins."""
        chosen, rejected = items.squeeze(2).unbind(dim=1)
        return bradley_terry_loss(chosen, rejected, temperature=temperature, margin=targets)

    def preference_logits(self, a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
        """The difference of the rewards in units of the temperature."""
        return (a - b).squeeze(1) / temperature


BRADLEY_TERRY = BradleyTerry()
