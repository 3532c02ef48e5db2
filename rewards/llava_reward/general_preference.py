"""General preferences: vectors compared by a skew-symmetric form, which can hold cycles that no scalar reward can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fk_reward.rewards.llava_reward.objective import Objective, at_least_float32, negative_log_likelihood


def preference_logits(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    """Logit of the preference of each row of `a` over the same row of `b`.

    s(a > b) = (a_0 b_1 - a_1 b_0 + a_2 b_3 - a_3 b_2 + ...) / temperature: the General Preference Model of Zhang et al.
    2024 (arXiv 2410.02197) with 2 x 2 blocks of equal weight, in the sign of the official LLaVA-Reward losses.

    Args:
        a: (B, d) vectors of the reward.
        b: (B, d) vectors to compare with.
        temperature: positive; 0.1 in the official rewards.

    Returns:
        (B,); the sigmoid of it is the probability that `a` is preferred. Swapping `a` and `b` turns the sign.

    Raises:
        ValueError: when the shapes differ, d is odd or the temperature is not positive.

    Example:
        >>> preference_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=0.5)
        tensor([2.])

    B: number of pairs, d: even size of the vectors.
    """
    _check(a, temperature)
    if a.shape != b.shape:
        raise ValueError(f"Both sides need the same shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    return (a[:, 0::2] * b[:, 1::2] - a[:, 1::2] * b[:, 0::2]).sum(dim=-1) / temperature


def mean_preference(vectors: Tensor, prompts: Sequence[str], *, temperature: float) -> Tensor:
    """Reward of each image among the images of its prompt: its mean preference logit against the others.

    This is how a general preference steers particles, which are only ever compared within one prompt. The reward is
    relative: unlike all other rewards it changes with the other images of the same prompt. The rewards of one prompt
    add up to 0, and a prompt with a single image gets 0, as there is nothing to compare it with.

    Args:
        vectors: (B, d) vectors of the reward.
        prompts: B strings; rows with equal strings are compared.
        temperature: positive; 0.1 in the official rewards.

    Returns:
        (B,).

    Raises:
        ValueError: when the counts differ, d is odd or the temperature is not positive.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> mean_preference(vectors, ["a cat", "a cat", "a dog"], temperature=1.0)
        tensor([ 1., -1.,  0.])

    B: number of images, d: even size of the vectors.
    """
    _check(vectors, temperature)
    if len(prompts) != len(vectors):
        raise ValueError(f"Give one prompt for each vector: got {len(prompts)} prompts for {len(vectors)} vectors.")
    even, odd = vectors[:, 0::2], vectors[:, 1::2]
    logits = (even @ odd.T - odd @ even.T) / temperature
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = torch.tensor([numbers[prompt] for prompt in prompts], device=vectors.device)
    others = (groups[:, None] == groups).fill_diagonal_(False)
    # `where`, not a product: 0 * inf of an image of another prompt would be NaN. An image alone divides 0 by 1.
    return logits.where(others, 0.0).sum(dim=1) / others.sum(dim=1).clamp(min=1)


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
    chosen, rejected = at_least_float32(chosen), at_least_float32(rejected)
    logits = preference_logits(chosen, rejected, temperature=temperature)
    return negative_log_likelihood(logits)


class GeneralPreference(Objective):
    """Vectors that are compared in pairs, trained on pairs without margins; a score is relative to the other images."""

    name = "general-preference"
    compares_images = True
    default_outputs = 2

    def loss(self, items: Tensor, targets: Tensor | None, *, temperature: float) -> Tensor:
        """`general_preference_loss`; margins raise, since they are in the unit of a scalar reward."""
        if targets is not None:
            raise ValueError("Margins are for the Bradley-Terry objective; set margin_scale to 0.")
        chosen, rejected = items.unbind(dim=1)
        return general_preference_loss(chosen, rejected, temperature=temperature)

    def preference_logits(self, a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
        """The skew-symmetric form."""
        return preference_logits(a, b, temperature=temperature)

    def score(self, vectors: Tensor, prompts: Sequence[str], *, temperature: float) -> Tensor:
        """`mean_preference`; a vector that is not finite gives NaN for its own image, and 0 for the others."""
        broken = ~vectors.isfinite().all(dim=1)
        if broken.any():  # compared with it, all images of the prompt would become NaN and the error name the first
            return torch.zeros(len(vectors)).masked_fill(broken.cpu(), torch.nan)
        return mean_preference(vectors, prompts, temperature=temperature)

    def check_outputs(self, value_head_dim: int) -> None:
        """Accept any even size: the form pairs the outputs two by two."""
        if value_head_dim < 2 or value_head_dim % 2:
            raise ValueError(f"value_head_dim must be even for general preferences, got {value_head_dim}.")


GENERAL_PREFERENCE = GeneralPreference()


def _check(vectors: Tensor, temperature: float) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.shape[1] % 2:
        raise ValueError(f"Vectors of a general preference need shape (B, d) with even d, got {tuple(vectors.shape)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
