"""How good the answers of a reward are: accuracy with and without ties, and calibration."""

from __future__ import annotations

import torch
from torch import Tensor


def answer_metrics(logits: Tensor, truths: Tensor) -> dict[str, float]:
    """Measures of yes-or-no answers.

    A tie is a logit of exactly 0, an answer that decides nothing.

    Args:
        logits: (N,) floating; above 0 says yes.
        truths: (N,) bool; for pairs all True, as the question is whether the chosen one wins.

    Returns:
        `accuracy`: share of right answers, ties counted as wrong. `accuracy_without_ties`: share of right answers among
        those that decide; NaN if all are ties. `ties`: share of ties. `calibration_error`: that of the function of
        this name.

    Raises:
        ValueError: when there are no answers, or not as many truths.

    Example:
        >>> answer_metrics(torch.tensor([2.0, 2.0, -2.0, 0.0]), torch.tensor([True, True, True, True]))["accuracy"]
        0.5

    N: number of answers.
    """
    if logits.ndim != 1 or logits.shape != truths.shape or not len(logits):
        raise ValueError(f"Expected logits and truths (N,), N > 0, got {tuple(logits.shape)}, {tuple(truths.shape)}.")
    decided = logits != 0
    right = decided & ((logits > 0) == truths)
    return {
        "accuracy": right.double().mean().item(),
        "accuracy_without_ties": right[decided].double().mean().item(),
        "ties": (~decided).double().mean().item(),
        "calibration_error": calibration_error(logits, truths),
    }


def calibration_error(logits: Tensor, truths: Tensor, *, num_bins: int = 10) -> float:
    """Expected calibration error: by how much confidence and accuracy differ, in the mean over answers.

    The confidence of an answer is the probability that the model gives to it, in [0.5, 1]. Answers are sorted into bins
    of equal width by confidence, and the differences between mean confidence and accuracy of the bins are averaged by
    the number of answers (Guo et al. 2017, arXiv 1706.04599, equation 5). A tie counts as half right.

    Args:
        logits: (N,) floating; above 0 says yes.
        truths: (N,) bool.
        num_bins: number of bins, positive.

    Returns:
        In [0, 1]; 0 is calibrated. With few answers, the estimate is biased upwards.

    Example:
        >>> certain = torch.full((4,), 30.0)
        >>> round(calibration_error(certain, torch.tensor([True, True, True, False])), 6)  # right in 3 of 4
        0.25

    N: number of answers.
    """
    logits = logits.double()
    confidence = torch.sigmoid(logits.abs())
    right = torch.where(logits == 0, 0.5, ((logits > 0) == truths).double())
    bins = ((confidence - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)  # a confidence of 1 is in the last bin
    # |sum over a bin| / N is the bin's gap weighted by its share of the answers.
    gaps = torch.zeros(num_bins, dtype=torch.double).index_add(0, bins, confidence - right)
    return (gaps.abs().sum() / len(logits)).item()
