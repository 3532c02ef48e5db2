"""What a reward is trained for: the loss of its raw outputs, and how they are read as answers and scores."""

from __future__ import annotations

import abc
import importlib
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

OBJECTIVES: dict[str, str] = {
    "bradley-terry": "fk_reward.rewards.llava_reward.bradley_terry:BRADLEY_TERRY",
    "binary": "fk_reward.rewards.llava_reward.binary:BINARY",
    "general-preference": "fk_reward.rewards.llava_reward.general_preference:GENERAL_PREFERENCE",
}
"""Name -> "module:object" of an `Objective`. A new objective is a file and one line here."""


class Objective(abc.ABC):
    """What the head's raw output means: how it is trained, compared and scored.

    An objective has no state: the temperature belongs to the checkpoint.

    Attributes:
        name: name in a checkpoint and on the command line.
        takes_pairs: whether it is trained on pairs of a chosen and a rejected image; if not, on labelled images.
        compares_images: whether an image's score depends on the other images of its prompt.
        default_outputs: size of the raw output where the user sets none.
    """

    name: ClassVar[str]
    takes_pairs: ClassVar[bool] = True
    compares_images: ClassVar[bool] = False
    default_outputs: ClassVar[int] = 1

    @abc.abstractmethod
    def loss(self, items: Tensor, targets: Tensor | None, *, temperature: float) -> Tensor:
        """The training loss.

        Args:
            items: (B, 2, d) or (B, 1, d), as from `items`.
            targets: (B,) margins of the pairs in the unit of the reward, or None; of labelled images the labels.
            temperature: positive.

        Returns:
            Scalar.

        Raises:
            ValueError: for targets that the objective does not take, or missing ones.

        B: number of pairs or of labelled images, d: size of the reward's raw output.
        """

    def soft_loss(self, items: Tensor, probabilities: Tensor, *, temperature: float) -> Tensor:
        """Cross-entropy of pairs with the probability that the chosen image wins, in place of its certain win.

        Args:
            items: (B, 2, d), as from `items`.
            probabilities: (B,) in [0, 1].
            temperature: positive.

        Returns:
            Scalar; smallest where the sigmoid of `logits` is that probability.

        Raises:
            ValueError: for an objective of labelled images, or other shapes.

        Example:
            >>> items, even = torch.zeros(1, 2, 1), torch.tensor([0.5])
            >>> f"{find_objective('bradley-terry').soft_loss(items, even, temperature=0.1).item():.4f}"  # log 2
            '0.6931'
        """
        if not self.takes_pairs:
            raise ValueError(f"Objective {self.name!r} has labels, no probabilities of pairs: set soft_targets to 0.")
        logits = at_least_float32(self.logits(items, temperature=temperature))
        check_vectors(logits=logits, probabilities=probabilities)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, probabilities.to(logits.dtype))

    @abc.abstractmethod
    def preference_logits(self, a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
        """(B,) logits that each image of `a` (B, d) is preferred to the same row of `b` (B, d)."""

    def logits(self, items: Tensor, *, temperature: float) -> Tensor:
        """(B,) logits of the model's answers to `items`: that the chosen image wins, or that the label is 1."""
        return self.preference_logits(*items.unbind(dim=1), temperature=temperature)

    def score(self, vectors: Tensor, prompts: Sequence[str], *, temperature: float) -> Tensor:  # noqa: ARG002
        """(B,) rewards of images whose raw outputs are `vectors` (B, d); higher is better."""
        return vectors.squeeze(1)

    def items(self, outputs: Tensor) -> Tensor:
        """Arrange the outputs of one forward as one row for each item of the data.

        Args:
            outputs: (2B, d), all chosen rows before all rejected ones, or (B, d) for labelled images.

        Returns:
            (B, 2, d), chosen and rejected; or (B, 1, d).

        Example:
            >>> outputs = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]])
            >>> find_objective("bradley-terry").items(outputs).squeeze(-1)
            tensor([[ 1., -1.],
                    [ 2., -2.]])

        B: number of pairs or of labelled images, d: size of the reward's raw output.
        """
        # Chosen and rejected go through the network in one forward, so that the vision tower runs once a step.
        return torch.stack(outputs.chunk(2), dim=1) if self.takes_pairs else outputs.unsqueeze(1)

    def check_outputs(self, value_head_dim: int) -> None:
        """Check the size of the raw output.

        Raises:
            ValueError: when it is not `default_outputs`, the only size unless a subclass allows others.
        """
        if value_head_dim != self.default_outputs:
            raise ValueError(
                f"value_head_dim must be {self.default_outputs} for objective {self.name!r}, got {value_head_dim}."
            )

    def check_data(self, *, is_labelled: bool) -> None:
        """Check that the data are of the kind that the objective is trained on.

        Raises:
            ValueError: for labelled images where pairs are needed, and the reverse.
        """
        if is_labelled == self.takes_pairs:
            kind = "labelled images" if is_labelled else "pairs"
            raise ValueError(f"Objective {self.name!r} does not fit the data, which are {kind}.")


def find_objective(name: str) -> Objective:
    """Find an objective by its name.

    Raises:
        ValueError: for an unknown name; it lists the known ones.

    Example:
        >>> find_objective("binary").takes_pairs
        False
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}.")
    module, _, attribute = OBJECTIVES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def negative_log_likelihood(logits: Tensor) -> Tensor:
    """-mean log sigmoid(logit), stable for logits of any size.

    Raises:
        ValueError: when there are no logits.
    """
    if not len(logits):  # the mean would be NaN
        raise ValueError("chosen and rejected are empty: a loss needs at least one pair.")
    return -torch.nn.functional.logsigmoid(logits).mean()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision: at a temperature of 0.1, bfloat16 rewards near 1 would move in steps of 0.08."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_vectors(**vectors: Tensor) -> None:
    """Check that tensors have one shape (B,) with B at least 1.

    Raises:
        ValueError: it names the shapes.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in vectors.items()}
    if any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"Expected tensors of one shape (B,) with B at least 1, got {shapes}.")
