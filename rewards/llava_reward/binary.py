"""The binary objective: a logit that says yes or no to an image, trained on labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fk_reward.rewards.llava_reward.objective import Objective, at_least_float32, check_vectors


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
        >>> import torch
        >>> loss = binary_loss(torch.tensor([0.0, 2.0]), torch.tensor([True, True]))
        >>> f"{loss.item():.4f}"  # (log 2 + log(1 + exp(-2))) / 2
        '0.4100'

    B: number of images.
    """
    check_vectors(logits=logits, labels=labels)
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()))}.")
    logits = at_least_float32(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits))


class Binary(Objective):
    """The logit of a yes, trained on labelled images; it has no temperature.

    Example:
        >>> import torch
        >>> BINARY.preference_logits(torch.tensor([[3.0]]), torch.tensor([[1.0]]), temperature=0.1)
        tensor([2.])
    """

    name = "binary"
    takes_pairs = False

    def loss(self, items: Tensor, targets: Tensor | None, *, temperature: float) -> Tensor:  # noqa: ARG002
        """`binary_loss` with `targets` as labels."""
        if targets is None:
            raise ValueError("A binary objective needs labelled images, got pairs.")
        return binary_loss(items.flatten(), targets)

    def logits(self, items: Tensor, *, temperature: float) -> Tensor:  # noqa: ARG002
        """The raw outputs."""
        return items.flatten()

    def preference_logits(self, a: Tensor, b: Tensor, *, temperature: float) -> Tensor:  # noqa: ARG002
        """The difference of the logits: the log-odds ratio of the two answers."""
        return (a - b).squeeze(1)


BINARY = Binary()
